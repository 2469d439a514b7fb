//! Names with quotes, escape sequences, line feeds, bytes that are no text; tags that there aren't; records cut short.

use umpa_abi::call::{Op, Status};

use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "forged-results",
    tries: "reports results whose names would break JSON or steer a terminal",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let names: [&[u8]; 14] = [
        b"\"",
        b"a\",\"b\":1",
        b"\\",
        b"\x1b[2J",
        b"\x1b]0;owned\x07",
        b"a\nb",
        b"\r",
        b"a b",
        b"{}",
        b"\xff\xfe",
        b"\xc2\x9b31m",
        b"\xe2\x80\xae",
        b"a\0b",
        b"\0",
    ];
    for text in names {
        for (tag, value_bytes) in [(1_u64, 96), (2, 32), (3, 96)] {
            let mut record = [0; 104];
            record[..8].copy_from_slice(&tag.to_le_bytes());
            record[8..8 + text.len()].copy_from_slice(text);
            let status = attacker.call(Op::Report as u32, 8 + value_bytes, 0, &record);
            check(status == Some(Status::BadPayload), "a name that is none was taken")?;
        }
    }
    for tag in [0, 4, 255, u64::MAX] {
        let mut record = [b'a'; 104];
        record[..8].copy_from_slice(&u64::to_le_bytes(tag));
        let status = attacker.call(Op::Report as u32, 104, 0, &record);
        check(status == Some(Status::BadPayload), "a kind of result that isn't one")?;
    }
    // A good one with the largest numbers, and what is behind it cut short.
    let mut record = [0xff; 104];
    record[..32].fill(0);
    record[0] = 2;
    record[8] = b'n';
    check(attacker.call(Op::Report as u32, 40, 0, &record) == Some(Status::Ok), "a good result")?;
    check(attacker.call(Op::Report as u32, 41, 0, &record) == Some(Status::BadPayload), "a piece of one")
}
