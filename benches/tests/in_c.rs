//! The C program does what the native series do. How fast is `cargo bench -p benches --bench native`.
//!
//! Emulated machines have no compiler: there this test says so, and passes.

use benches::in_c::{Program, WAYS, WORK, own};
use work::Params;

#[test]
fn both_do_the_same_work() {
    let folder = tempfile::tempdir().unwrap();
    let program = match Program::compile(folder.path()) {
        Err(error)
            if std::env::var_os("VMM_EMULATED").is_some() && error.kind() == std::io::ErrorKind::NotFound =>
        {
            println!("there is no compiler in an emulated machine");
            return;
        }
        program => program.unwrap(),
    };
    let work = Params { ops: 100, warmup_ops: 10, ring_blocks: 16, ..WORK };
    for way in WAYS {
        let (c, here) = (program.run(way, &work).unwrap(), own(way, &work).unwrap());
        assert_eq!(c.bins.iter().map(|bin| bin.ops).sum::<u64>(), 100);
        assert_eq!(c.work(), here.work(), "{way}");
        assert!(c.bins.iter().chain(&here.bins).all(|bin| bin.cycles[1] > 0), "{way}");
        // Another seed is another work, for both.
        let other = Params { seed: 2, ..work };
        let other = (program.run(way, &other).unwrap().work(), own(way, &other).unwrap().work());
        assert_eq!(other.0, other.1);
        assert_ne!(other.0, c.work());
    }
    assert!(program.run("brk", &work).is_err() && own("brk", &work).is_err());
}
