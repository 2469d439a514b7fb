//! Text that would steer a terminal: the host looks at what comes out.

use umpa_abi::call::{Op, Status};

use super::{Attack, Attacker};
use crate::workloads::{Failure, check};

/// See the [module](self).
pub(super) const ATTACK: Attack = Attack {
    name: "console-escapes",
    tries: "prints escape sequences, control characters and text from right to left",
    run,
};

fn run(attacker: &mut Attacker<'_>) -> Result<(), Failure> {
    let texts: [&[u8]; 9] = [
        b"\x1b[2J\x1b[H\x1b[31mred\n",
        b"\x1b]0;title\x07\x1b]52;c;cm0gLXJmIH4=\x07\n",
        b"\x1bP+q\x1b\\\x1b_x\x1b\\\x1b^y\x1b\\\n",
        b"\x9b31m\x90\x9d\n",
        "\u{9b}31m\u{85}\u{2028}\n".as_bytes(),
        b"\r\x08\x08\x7f\x00\x07\x0b\x0c\x0e\x0f\n",
        "\u{202e}txet\u{2066}\u{2069}\n".as_bytes(),
        b"\xff\xfe\xc0\x80\xed\xa0\x80\n",
        b"passed\n\x1b[1A\x1b[2Kfailed\n",
    ];
    for text in texts {
        let status = attacker.call(Op::Console as u32, text.len() as u32, 0, text);
        check(status == Some(Status::Ok), "text was refused")?;
    }
    // Cut where a character isn't complete.
    for piece in [&b"\xe2\x80"[..], b"\xae\n", b"\x1b", b"[2J\n"] {
        let status = attacker.call(Op::Console as u32, piece.len() as u32, 0, piece);
        check(status == Some(Status::Ok), "text was refused")?;
    }
    Ok(())
}
