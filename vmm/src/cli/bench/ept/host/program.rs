//! The code of bare guests. What stands beside the bytes is what a disassembler says.

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::block::BLOCK_PORT;
use umpa_abi::call::CALL_PORT;
use umpa_abi::layout::{FRAMES_GPA, direct};
use vmm::bare::{HOLE_GVA, RESULTS_BYTES, TAKEN_GVA};

/// Most operations of one go: each leaves a word.
pub(super) const OPS_MAX: u32 = (RESULTS_BYTES / 8) as u32;

/// `out dx, eax` to a port that means nothing here.
pub(super) fn port_out() -> Vec<u8> {
    [&mov_dx(CALL_PORT)[..], &[0xef]].concat()
}

/// `in eax, dx`.
pub(super) fn port_in() -> Vec<u8> {
    [&mov_dx(CALL_PORT)[..], &[0xed]].concat()
}

/// `mov [r11], eax`, where no memory is.
pub(super) fn mmio_write() -> Vec<u8> {
    vec![0x41, 0x89, 0x03]
}

/// `mov eax, [r11]`, where no memory is.
pub(super) fn mmio_read() -> Vec<u8> {
    vec![0x41, 0x8b, 0x03]
}

/// `hlt`.
pub(super) fn halt() -> Vec<u8> {
    vec![0xf4]
}

/// For each interrupt that is taken, also before it looks: an exit of the block device's port.
pub(super) fn wait_for_interrupts() -> Vec<u8> {
    let mut code = vec![0x49, 0xbb];
    code.extend(TAKEN_GVA.get().to_le_bytes()); // movabs r11, TAKEN_GVA
    code.extend([0x31, 0xc0]); // xor eax, eax
    code.extend(mov_dx(BLOCK_PORT));
    let next = code.len();
    code.extend([0xf3, 0x90]); // pause
    code.extend([0x49, 0x3b, 0x03]); // cmp rax, [r11]
    jump(&mut code, 0x74, next); // je next
    code.extend([0x48, 0xff, 0xc0]); // inc rax
    code.push(0xef); // out dx, eax
    jump(&mut code, 0xeb, next); // jmp next
    code
}

fn mov_dx(port: u16) -> [u8; 4] {
    let [low, high] = port.to_le_bytes();
    [0x66, 0xba, low, high] // mov dx, port
}

/// Does an operation `ops` times, and leaves the cycles of each, from 0 to 2^32; then an exit of the block
/// device's port, and all of it again. The operation may use eax and edx.
pub(super) fn timed(operation: &[u8], ops: u32) -> Vec<u8> {
    let mut code = vec![0x49, 0xbb];
    code.extend(HOLE_GVA.get().to_le_bytes()); // movabs r11, HOLE_GVA
    code.extend([0x49, 0x89, 0xf8, 0x41, 0xb9]); // mov r8, rdi
    code.extend(ops.min(OPS_MAX).to_le_bytes()); // mov r9d, ops
    let next = code.len();
    code.extend([0x0f, 0x31]); // rdtsc
    code.extend([0x41, 0x89, 0xc2]); // mov r10d, eax
    code.extend(operation);
    code.extend([0x0f, 0x31]); // rdtsc
    code.extend([0x44, 0x29, 0xd0]); // sub eax, r10d
    code.extend([0x49, 0x89, 0x00]); // mov [r8], rax
    code.extend([0x49, 0x83, 0xc0, 0x08]); // add r8, 8
    code.extend([0x41, 0xff, 0xc9]); // dec r9d
    jump(&mut code, 0x75, next); // jnz next
    again(&mut code);
    code
}

/// Adds 1 to the first word of each of so many frames, and leaves the cycles of all; then as [`timed`].
pub(super) fn writes(frames: u32) -> Vec<u8> {
    let mut code = vec![0x49, 0xb9];
    code.extend(direct(FRAMES_GPA).get().to_le_bytes()); // movabs r9, the first frame
    code.push(0xb9);
    code.extend(frames.to_le_bytes()); // mov ecx, frames
    code.extend([0x0f, 0x31]); // rdtsc
    code.extend([0x41, 0x89, 0xc2]); // mov r10d, eax
    let next = code.len();
    code.extend([0x49, 0xff, 0x01]); // inc qword ptr [r9]
    code.extend([0x49, 0x81, 0xc1]);
    code.extend((PAGE_BYTES as u32).to_le_bytes()); // add r9, 4096
    code.extend([0xff, 0xc9]); // dec ecx
    jump(&mut code, 0x75, next); // jnz next
    code.extend([0x0f, 0x31]); // rdtsc
    code.extend([0x44, 0x29, 0xd0]); // sub eax, r10d
    code.extend([0x48, 0x89, 0x07]); // mov [rdi], rax
    again(&mut code);
    code
}

/// The exit at the end, and back to the start.
fn again(code: &mut Vec<u8>) {
    code.extend(mov_dx(BLOCK_PORT));
    code.push(0xef); // out dx, eax
    jump(code, 0xeb, 0); // jmp start
}

/// A jump back of two bytes.
fn jump(code: &mut Vec<u8>, opcode: u8, to: usize) {
    let back = code.len() + 2 - to;
    code.extend([opcode, (back as u8).wrapping_neg()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_reach_their_targets() {
        let code = timed(&port_out(), 7);
        assert!(code.len() < 128, "jumps are of one byte");
        let end = code.len();
        assert_eq!(code[end - 2..], [0xeb, (end as u8).wrapping_neg()]);
        // movabs, mov, mov: 19 bytes.
        let jnz = end - 7 - 2;
        assert_eq!(code[jnz..jnz + 2], [0x75, ((jnz + 2 - 19) as u8).wrapping_neg()]);
        assert_eq!(code[19..21], [0x0f, 0x31]);
        let code = wait_for_interrupts();
        assert_eq!(code[16..23], [0xf3, 0x90, 0x49, 0x3b, 0x03, 0x74, 0xf9]);
        assert_eq!(code[27..], [0xeb, 0xf3]);
    }
}
