//! `attack [NAME [variant [effort]]]`: one of the [attacks](crate::attacks), or without a name the list of
//! them, a line each: name, tab, what it tries.
//!
//! It passes when everything was refused; it fails when something was reached that isn't its own. Many
//! attacks end as violations, or wait for the watchdog.

use super::{Context, Failure};
use crate::attacks::{ATTACKS, Attacker};

/// See the [module](self).
pub(super) fn run(context: &mut Context<'_>) -> Result<(), Failure> {
    let Some(name) = context.arg(1) else {
        ATTACKS.iter().for_each(|attack| println!("{}\t{}", attack.name, attack.tries));
        return Ok(());
    };
    let Some(attack) = ATTACKS.iter().find(|attack| attack.name == name) else {
        return Err(Failure::new("no such attack"));
    };
    let (variant, effort) = (context.number(2, 0)?, context.number(3, 100)?);
    let mut attacker = Attacker::new(context.boot, &mut context.machine, variant, effort);
    (attack.run)(&mut attacker)?;
    let [tried, raised] = attacker.counts();
    println!("\n{tried} tries, {raised} exceptions");
    Ok(())
}
