//! What an emulated machine sends over its serial port, as frames: in pieces of any size the same frames, or the
//! same error, come out, and what comes out is what was sent.

use vmm::emulate::streams::{Frame, FrameError, FrameReader, FrameWriter, PAYLOAD_BYTES_MAX, PREAMBLE};

use super::input::Input;

/// A byte says how large the pieces are; the rest comes over the port, behind a preamble if it is odd.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let shape = input.u8();
    let mut port = if shape & 1 == 1 { PREAMBLE.to_vec() } else { Vec::new() };
    port.extend(input.bytes(usize::MAX));
    let (frames, error) = read(&port, port.len());
    assert_eq!(read(&port, usize::from(shape >> 1) + 1).0, frames);

    for frame in &frames {
        if let Frame::Ready(bytes) | Frame::Stdout(bytes) | Frame::Stderr(bytes) | Frame::FileData(bytes) =
            frame
        {
            assert!(bytes.len() <= PAYLOAD_BYTES_MAX);
        }
    }
    // Written again, they are a part of what came.
    let mut again = Vec::new();
    let mut writer = FrameWriter::new(&mut again).expect("memory");
    for frame in &frames {
        writer.send(frame).expect("it was sent before");
    }
    let written = &again[PREAMBLE.len()..];
    assert!(port.windows(written.len().max(1)).any(|part| part == written) || written.is_empty());
    if let Some(error) = error {
        let text = error.to_string();
        assert!(!text.contains(|character: char| character.is_control()), "{text:?}");
    }
}

fn read(port: &[u8], piece_bytes: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut reader = FrameReader::default();
    let mut frames = Vec::new();
    for piece in port.chunks(piece_bytes.max(1)) {
        reader.push(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}
