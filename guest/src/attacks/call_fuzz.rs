//! Hypercalls whose header and payload are random, or made of numbers at edges. All are answered with a status,
//! except those that ended the guest, which aren't tried here.

use fastrand::Rng;
use umpa_abi::Wire;
use umpa_abi::call::{CallHeader, Status};
use umpa_abi::exchange::{Policy, Shortfall};

use super::{Attack, Attacker};
use crate::call::CallArea;
use crate::workloads::{Failure, check};

const HEADER: usize = CallHeader::SIZE_BYTES;

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "call-fuzz",
    tries: "makes thousands of hypercalls with random and edge numbers in header and payload",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let calls = attacker.some(2000);
    for call in 0..calls {
        let rng = &mut attacker.rng;
        let mut area = CallArea::take();
        let bytes = area.bytes();
        let used = rng.usize(0..256);
        for (index, byte) in bytes[..HEADER + used].iter_mut().enumerate() {
            *byte = if index % 8 < 6 && rng.bool() { 0 } else { rng.u8(..) };
        }
        let op = if rng.bool() { rng.u32(0..10) } else { edge(rng) as u32 };
        // Exit ends it, Hello of another version too; a pause waits for a driver.
        let op = if [1, 5, 6].contains(&op) { 3 } else { op };
        let in_bytes = if rng.bool() { used as u32 } else { edge(rng) as u32 };
        bytes[..4].copy_from_slice(&op.to_le_bytes());
        bytes[8..12].copy_from_slice(&in_bytes.to_le_bytes());
        for word in bytes[HEADER..HEADER + used].chunks_exact_mut(8) {
            if rng.u8(..) < 64 {
                word.copy_from_slice(&edge(rng).to_le_bytes());
            }
        }
        area.send();
        let status = u32::from_le_bytes([bytes_at(&mut area, 4), bytes_at(&mut area, 5), 0, 0]);
        check(Status::try_from(status).is_ok(), "an answer without a status")?;
        drop(area);
        if call % 256 == 0 {
            // It still works. (There may be no frames left: some calls were good ones.)
            let source = &mut attacker.machine.hypervisor;
            let nothing = source.try_exchange(&[], [0; 3], Policy::AllOrNothing, &mut |_| {});
            check(nothing.is_ok_and(|it| it.shortfall == Shortfall::None), "an empty exchange")?;
        }
    }
    attacker.tried(calls);
    Ok(())
}

fn bytes_at(area: &mut CallArea, index: usize) -> u8 {
    area.bytes()[index]
}

/// A number near one where things change.
fn edge(rng: &mut Rng) -> u64 {
    let near = [0_u64, 1 << 12, 65472, 1 << 16, 1 << 20, 1 << 31, 1 << 32, 1 << 40, 1 << 52, 1 << 63];
    near[rng.usize(0..near.len())].wrapping_add(rng.u64(0..5)).wrapping_sub(2)
}
