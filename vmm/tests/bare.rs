//! Guests that nothing is served to: what they do comes out as it is.

use umpa_abi::addr::Gpa;
use vmm::bare::{Bare, BareError, Due, HOLE_GVA, TAKEN_GVA};
use vmm::exits::{Emulated, Exit};
use vmm::host::Host;
use vmm::vcpu::Ring;

const FRAMES_BYTES: u64 = 2 << 20;

fn bare(code: &[u8], ring: Ring) -> Bare {
    Bare::new(&Host::open().unwrap(), code, ring, FRAMES_BYTES).unwrap()
}

/// The next `count` exits.
fn exits(bare: Bare, count: usize) -> (Bare, Vec<Exit>) {
    let run = move |bare: &mut Bare, jailed: &_| {
        let mut exits = Vec::new();
        while exits.len() < count {
            match bare.run(jailed) {
                Exit::Interrupted => {}
                exit => exits.push(exit),
            }
        }
        Ok(exits)
    };
    bare.start(run).unwrap().join().unwrap()
}

#[test]
fn core_what_ends_other_guests_comes_out_of_a_bare_one() {
    let mut code = vec![0x66, 0xba, 0, 6, 0xed, 0xef]; // mov dx, 0x600; in eax, dx; out dx, eax
    code.extend([0x49, 0xbb]);
    code.extend((HOLE_GVA.get() + 0x1238).to_le_bytes()); // movabs r11, HOLE_GVA + 0x1238
    code.extend([0xb8, 7, 0, 0, 0]); // mov eax, 7
    code.extend([0x48, 0xc7, 0x07, 5, 0, 0, 0]); // mov qword ptr [rdi], 5
    code.extend([0x41, 0x89, 0x03]); // mov [r11], eax
    code.extend([0x41, 0x8b, 0x03]); // mov eax, [r11]
    code.extend([0x0f, 0x0b]); // ud2
    let (bare, found) = exits(bare(&code, Ring::Three), 5);
    let port = |out| Exit::Port { port: 0x600, bytes: 4, out };
    let mmio = |access| Exit::Mmio { gpa: Gpa::new((3 << 30) + 0x1238), access };
    let store = Emulated::Store { bytes: 4, data: [7, 0, 0, 0, 0, 0, 0, 0] };
    assert_eq!(found[..4], [port(false), port(true), mmio(store), mmio(Emulated::Load)]);
    assert_eq!(found[4], Exit::Shutdown, "an exception ends it");
    let mut results = [0, 1];
    bare.results(&mut results).unwrap();
    assert_eq!(results, [5, 0]);
}

#[test]
fn interrupts_wake_it_and_are_counted() {
    // hlt; jmp $ - 1
    let bare = bare(&[0xf4, 0xeb, 0xfd], Ring::Zero);
    let run = |bare: &mut Bare, jailed: &_| {
        for _ in 0..3 {
            let exit = bare.run(jailed);
            if exit != Exit::Halt {
                return Err(bare.unexpected(exit));
            }
            while !bare.interrupt()? {
                bare.run(jailed);
            }
        }
        // The third is taken on the way to this one.
        Ok(bare.run(jailed))
    };
    let (bare, last) = bare.start(run).unwrap().join().unwrap();
    assert_eq!((last, bare.taken().unwrap()), (Exit::Halt, 3));
}

#[test]
fn a_kick_takes_it_out_and_interrupts_reach_code_at_cpl_3() {
    let mut code = vec![0x49, 0xbb];
    code.extend(TAKEN_GVA.get().to_le_bytes()); // movabs r11, TAKEN_GVA
    code.extend([0x49, 0x83, 0x3b, 0]); // cmp qword ptr [r11], 0
    code.extend([0x74, 0xfa]); // je $ - 4
    code.extend([0x66, 0xba, 0, 6, 0xef, 0xeb, 0xfe]); // mov dx, 0x600; out dx, eax; jmp $
    let bare = bare(&code, Ring::Three);
    let kick = bare.kick();
    let (tell, told) = std::sync::mpsc::channel();
    let started = bare
        .start(move |bare, jailed| {
            let first =
                bare.run_while(jailed, || told.try_recv().map_or(Due::Nothing, |()| Due::Interrupt))?;
            let last = bare.run_while(jailed, || told.try_recv().map_or(Due::Nothing, |()| Due::Stop))?;
            Ok((first, last))
        })
        .unwrap();
    for _ in 0..2 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        tell.send(()).unwrap();
        kick.kick();
    }
    let (bare, (first, last)) = started.join().unwrap();
    assert_eq!(first, Some(Exit::Port { port: 0x600, bytes: 4, out: true }));
    assert_eq!((last, bare.taken().unwrap()), (None, 1));
}

/// The log has the frames that were written since it was read. KVM may map a frame writable when it is read for
/// the first time, and counts it as written then.
#[test]
fn core_the_log_names_the_frames_that_were_written() {
    let mut code = vec![0x49, 0xb9];
    code.extend(umpa_abi::layout::direct(umpa_abi::layout::FRAMES_GPA).get().to_le_bytes()); // movabs r9, frames
    code.extend([0x49, 0xff, 0x81, 0, 0x30, 0, 0]); // inc qword ptr [r9 + 0x3000]
    code.extend([0x49, 0x8b, 0x81, 0, 0x50, 0, 0]); // mov rax, [r9 + 0x5000]
    code.extend([0x66, 0xba, 0, 6, 0xef]); // mov dx, 0x600; out dx, eax
    code.extend([0x49, 0xff, 0x81, 0, 0x70, 4, 0]); // inc qword ptr [r9 + 0x47000]
    code.extend([0x66, 0xba, 0, 6, 0xef]); // mov dx, 0x600; out dx, eax
    code.extend([0xeb, (-(code.len() as i8 + 2)) as u8]); // jmp to the start
    let guest = bare(&code, Ring::Three);
    assert!(matches!(guest.dirty(), Err(BareError::DirtyLog(_))), "no log is kept");
    guest.log_dirty(true).unwrap();
    let (guest, _) = exits(guest, 1);
    let log = guest.dirty().unwrap();
    assert_eq!((log.len(), log[0] & !(1 << 5), log[1]), (8, 1 << 3, 0));
    assert_eq!(guest.dirty().unwrap(), [0; 8], "reading takes them out");
    let (guest, _) = exits(guest, 2);
    let log = guest.dirty().unwrap();
    assert_eq!((log[0], log[1]), (1 << 3, 1 << 7), "a word, and one after it, of each round");
    guest.log_dirty(false).unwrap();
    assert!(matches!(guest.dirty(), Err(BareError::DirtyLog(_))));
    let words: Vec<u64> = guest.frame_words().collect();
    assert_eq!((words.len(), words[3], words[5], words[0x47]), (512, 2, 0, 1));
}

#[test]
fn code_has_a_page_and_frames_are_whole() {
    let host = Host::open().unwrap();
    let new = |bytes: usize, frames| Bare::new(&host, &vec![0x90; bytes], Ring::Three, frames);
    assert!(matches!(new(4097, FRAMES_BYTES), Err(BareError::Code { bytes: 4097 })));
    assert!(matches!(new(4096, 4096), Err(BareError::Memory(_))));
}
