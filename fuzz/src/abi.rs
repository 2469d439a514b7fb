//! Every type that crosses the border: any bytes give a value or an error, and a value is the bytes it came
//! from.

use std::fmt::Debug;

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::boot::BootInfo;
use umpa_abi::call::CallHeader;
use umpa_abi::exchange::{ExchangeReply, ExchangeRequest, Extent};
use umpa_abi::image::{ImageHeader, TRAP_STUBS_BYTES, TRAP_TABLES_BYTES};
use umpa_abi::layout::{IMAGE_GVA, IMAGE_MAX_BYTES, PROCESSORS_MAX};
use umpa_abi::record::Record;
use umpa_abi::upcall::{self, Answer, Request, Turn};
use umpa_abi::{DecodeError, Wire};

use super::input::Input;
use super::results;

/// A byte chooses the type, the rest is decoded.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8() % 11;
    let bytes = input.bytes(usize::MAX);
    match kind {
        0 => drop(wire::<CallHeader>(bytes)),
        1 => drop(wire::<ExchangeRequest>(bytes)),
        2 => drop(wire::<ExchangeReply>(bytes)),
        3 => wire::<Extent>(bytes).iter().for_each(extent),
        4 => drop(wire::<Answer>(bytes)),
        5 => drop(wire::<Request>(bytes)),
        6 => wire::<BootInfo>(bytes).iter().for_each(boot),
        7 => wire::<ImageHeader>(bytes).iter().for_each(image),
        8 => records(bytes),
        9 => request_page(bytes),
        _ => turn(bytes),
    }
}

fn wire<T: Wire + Debug + PartialEq>(bytes: &[u8]) -> Option<T> {
    match T::decode(bytes) {
        Ok(value) => {
            let mut encoded = vec![0xa5; T::SIZE_BYTES + 1];
            assert_eq!(value.encode(&mut encoded[..T::SIZE_BYTES - 1]).map_err(is_short), Err(true));
            assert!(encoded.iter().all(|&byte| byte == 0xa5), "half a value was written");
            value.encode(&mut encoded).expect("there is room");
            assert_eq!(encoded[..T::SIZE_BYTES], bytes[..T::SIZE_BYTES]);
            assert_eq!(encoded[T::SIZE_BYTES], 0xa5, "a byte behind the value was written");
            assert_eq!(T::decode(&encoded).as_ref(), Ok(&value));
            Some(value)
        }
        Err(error) => {
            assert_eq!(is_short(error), bytes.len() < T::SIZE_BYTES, "{error}");
            None
        }
    }
}

const fn is_short(error: DecodeError) -> bool {
    matches!(error, DecodeError::Short { .. })
}

fn extent(extent: &Extent) {
    let end = extent.first.checked_add(extent.frames()).expect("an extent ends");
    assert!(extent.frames() >= 1 && end <= 1 << 40);
    assert!(extent.first().is_aligned(extent.size()));
    assert_eq!(Extent::new(extent.first(), extent.count, extent.size()), *extent);
}

fn boot(boot: &BootInfo) {
    let args: Vec<&[u8]> = boot.args().collect();
    let bytes: usize = args.iter().map(|arg| arg.len()).sum();
    assert!(bytes <= boot.args_bytes as usize);
    assert!(args.iter().all(|arg| !arg.is_empty() && !arg.contains(&0)));
}

fn image(image: &ImageHeader) {
    let start = IMAGE_GVA.get();
    let bounds = [
        start,
        image.text_end,
        image.rodata_end,
        image.data_end,
        image.trap_text_end,
        image.end,
        start + IMAGE_MAX_BYTES,
    ];
    assert!(bounds.is_sorted() && bounds.iter().all(|bound| bound % PAGE_BYTES == 0));
    assert_eq!(image.size_bytes(), image.end - start);
    let stubs = image.trap_stubs..image.trap_stubs + PROCESSORS_MAX * TRAP_STUBS_BYTES;
    let tables = image.trap_tables..image.trap_tables + TRAP_TABLES_BYTES;
    assert!(image.data_end <= stubs.start && stubs.end <= image.trap_text_end);
    assert!(image.trap_text_end <= tables.start && tables.end <= image.end);
    assert!(image.trap_text_end < image.trap_stack_top && image.trap_stack_top <= image.end);
    for code in [image.entry, image.syscall] {
        assert!((start..image.text_end).contains(&code));
    }
}

fn records(mut bytes: &[u8]) {
    while let Ok((record, used)) = Record::decode(bytes) {
        let mut encoded = [0; Record::MAX_BYTES];
        assert_eq!(record.encode(&mut encoded), Ok(used));
        assert_eq!(encoded[..used], bytes[..used]);
        assert_eq!(record.encode(&mut encoded[..used - 1]).map_err(is_short), Err(true));
        results::line(&record);
        bytes = &bytes[used..];
    }
}

/// A page that the host has written is read as it was meant, also by a reader that comes in between.
fn request_page(bytes: &[u8]) {
    let mut words = [0u64; upcall::REQUEST_WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(whole);
    }
    let read = |words: &[u64; upcall::REQUEST_WORDS]| upcall::read(|word| words[word]);
    let found = read(&words);
    let Ok(request) = Request::decode(bytes) else { return };
    assert_eq!(found.is_some(), request.id != 0 && request.sequence % 2 == 0);
    let mut steps = Vec::new();
    let sequence = upcall::write(&request, words[0], |word, value| steps.push((word, value)));
    assert_eq!(sequence % 2, 0);
    for (step, (word, value)) in steps.iter().enumerate() {
        words[*word] = *value;
        let seen = read(&words);
        if step + 1 < steps.len() {
            assert_eq!(seen, None, "a record was read while it was being written");
        } else {
            let want = (request.id != 0).then_some(Request { sequence, ..request });
            assert_eq!(seen, want);
        }
    }
}

fn turn(bytes: &[u8]) {
    let answer = Input::new(bytes).u64();
    if let Some(turn) = Turn::from_answer(answer) {
        assert_eq!(turn.answer(), answer);
        assert!(turn.frames > 0 && answer != 0);
    }
}
