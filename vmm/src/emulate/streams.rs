//! The protocol on the emulated machine's second serial port: frames from init to the host, nothing back.
//!
//! A frame is `sequence: u32, kind: u8, payload bytes: u32, CRC-32 of these three and the payload: u32, payload`,
//! numbers in little-endian. Invariants: frame n of a connection has sequence n, so a lost frame is seen as well
//! as a changed one; the first frame comes right after [`PREAMBLE`], and what a serial driver's probing puts
//! before that is skipped; no payload is larger than [`PAYLOAD_BYTES_MAX`].

use std::io::{self, Write};

use super::request::CommandStatus;

/// What comes before the first frame.
pub const PREAMBLE: &[u8; 16] = b"\n<umpa emulate>\n";
/// The largest payload.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;
const HEADER_BYTES: usize = 13;
/// Noise before the preamble that is taken for a driver's probing and not for a broken line.
const NOISE_BYTES_MAX: usize = 4096;

/// One message of init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The machine is ready; JSON of [`super::request::Ready`].
    Ready(Vec<u8>),
    /// A command of the request begins.
    Begin(u32),
    /// The command wrote to its standard output.
    Stdout(Vec<u8>),
    /// The command wrote to its standard error.
    Stderr(Vec<u8>),
    /// The command ended.
    End(CommandStatus),
    /// A part of the next file that was asked for.
    FileData(Vec<u8>),
    /// That file is complete.
    FileEnd,
    /// That file does not exist.
    FileMissing,
    /// Init can't go on; JSON of [`super::request::InitFailure`].
    Failure(Vec<u8>),
    /// Nothing comes after this.
    Done,
}

/// Bytes that are no frame. Offsets count from the first byte on the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The preamble did not come.
    #[error("no preamble in the first {bytes} bytes")]
    NoPreamble {
        /// Bytes seen.
        bytes: u64,
    },
    /// A checksum is wrong.
    #[error("the frame at byte {offset} has checksum {computed:#010x}, announced as {announced:#010x}")]
    Checksum {
        /// Where the frame begins.
        offset: u64,
        /// The checksum in the frame.
        announced: u32,
        /// The checksum of what came.
        computed: u32,
    },
    /// A payload is larger than any that init sends.
    #[error("the frame at byte {offset} announces a payload of {bytes} bytes")]
    TooLarge {
        /// Where the frame begins.
        offset: u64,
        /// The size it announces.
        bytes: u32,
    },
    /// Frames are missing.
    #[error("frame {expected} is missing: the frame at byte {offset} is number {found}")]
    Lost {
        /// Where the frame begins.
        offset: u64,
        /// The number it should have.
        expected: u32,
        /// The number it has.
        found: u32,
    },
    /// A kind or a payload that init never sends.
    #[error(
        "the frame at byte {offset} has kind {kind} with a payload of {bytes} bytes, which means nothing"
    )]
    Meaningless {
        /// Where the frame begins.
        offset: u64,
        /// Its kind.
        kind: u8,
        /// Its payload's size.
        bytes: usize,
    },
}

/// Writes frames to the port; each in one piece, for the sake of slow ports.
pub struct FrameWriter<W: Write> {
    port: W,
    sequence: u32,
}

impl<W: Write> FrameWriter<W> {
    /// Starts the connection.
    pub fn new(mut port: W) -> io::Result<Self> {
        port.write_all(PREAMBLE)?;
        Ok(Self { port, sequence: 0 })
    }

    /// Sends a frame; a payload of more than [`PAYLOAD_BYTES_MAX`] is refused.
    pub fn send(&mut self, frame: &Frame) -> io::Result<()> {
        let encoded = encode(self.sequence, frame)?;
        self.sequence = self.sequence.wrapping_add(1);
        self.port.write_all(&encoded)?;
        self.port.flush()
    }
}

fn encode(sequence: u32, frame: &Frame) -> io::Result<Vec<u8>> {
    let number;
    let (kind, payload): (u8, &[u8]) = match frame {
        Frame::Ready(json) => (1, json),
        Frame::Begin(index) => {
            number = index.to_le_bytes();
            (2, &number)
        }
        Frame::Stdout(bytes) => (3, bytes),
        Frame::Stderr(bytes) => (4, bytes),
        Frame::End(CommandStatus::Exited(code)) => (5, std::slice::from_ref(code)),
        Frame::End(CommandStatus::Signaled(signal)) => (6, std::slice::from_ref(signal)),
        Frame::FileData(bytes) => (7, bytes),
        Frame::FileEnd => (8, &[]),
        Frame::FileMissing => (9, &[]),
        Frame::Failure(json) => (10, json),
        Frame::Done => (11, &[]),
    };
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut encoded = Vec::with_capacity(HEADER_BYTES + payload.len());
    encoded.extend(sequence.to_le_bytes());
    encoded.push(kind);
    encoded.extend((payload.len() as u32).to_le_bytes());
    let checksum = checksum(&encoded, payload);
    encoded.extend(checksum.to_le_bytes());
    encoded.extend(payload);
    Ok(encoded)
}

fn decode(kind: u8, payload: &[u8]) -> Option<Frame> {
    Some(match (kind, payload) {
        (1, _) => Frame::Ready(payload.to_vec()),
        (2, &[a, b, c, d]) => Frame::Begin(u32::from_le_bytes([a, b, c, d])),
        (3, _) => Frame::Stdout(payload.to_vec()),
        (4, _) => Frame::Stderr(payload.to_vec()),
        (5, &[code]) => Frame::End(CommandStatus::Exited(code)),
        (6, &[signal]) => Frame::End(CommandStatus::Signaled(signal)),
        (7, _) => Frame::FileData(payload.to_vec()),
        (8, []) => Frame::FileEnd,
        (9, []) => Frame::FileMissing,
        (10, _) => Frame::Failure(payload.to_vec()),
        (11, []) => Frame::Done,
        _ => return None,
    })
}

fn checksum(numbers: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(numbers);
    crc.update(payload);
    crc.finalize()
}

/// Takes the port's bytes as they come, in pieces of any size, and gives frames.
#[derive(Debug, Default)]
pub struct FrameReader {
    pending: Vec<u8>,
    /// Bytes of the port before `pending`.
    offset: u64,
    sequence: u32,
    started: bool,
}

impl FrameReader {
    /// Takes bytes from the port.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next frame; `None` while it isn't there in full.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if !self.started && !self.skip_preamble()? {
            return Ok(None);
        }
        let Some(header) = self.pending.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let &[s0, s1, s2, s3, kind, l0, l1, l2, l3, c0, c1, c2, c3] = header;
        let offset = self.offset;
        let announced = u32::from_le_bytes([c0, c1, c2, c3]);
        let payload_bytes = u32::from_le_bytes([l0, l1, l2, l3]);
        if payload_bytes as usize > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLarge { offset, bytes: payload_bytes });
        }
        let end = HEADER_BYTES + payload_bytes as usize;
        let Some(payload) = self.pending.get(HEADER_BYTES..end) else { return Ok(None) };
        let computed = checksum(&header[..9], payload);
        if computed != announced {
            return Err(FrameError::Checksum { offset, announced, computed });
        }
        let (found, expected) = (u32::from_le_bytes([s0, s1, s2, s3]), self.sequence);
        if found != expected {
            return Err(FrameError::Lost { offset, expected, found });
        }
        let frame =
            decode(kind, payload).ok_or(FrameError::Meaningless { offset, kind, bytes: payload.len() })?;
        self.sequence = self.sequence.wrapping_add(1);
        self.consume(end);
        Ok(Some(frame))
    }

    fn skip_preamble(&mut self) -> Result<bool, FrameError> {
        match self.pending.windows(PREAMBLE.len()).position(|window| window == PREAMBLE) {
            Some(at) => {
                self.consume(at + PREAMBLE.len());
                self.started = true;
                Ok(true)
            }
            None if self.pending.len() > NOISE_BYTES_MAX => {
                Err(FrameError::NoPreamble { bytes: self.pending.len() as u64 })
            }
            None => Ok(false),
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.pending.drain(..bytes);
        self.offset += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Frame> {
        vec![
            Frame::Ready(b"{}".to_vec()),
            Frame::Begin(0x0102_0304),
            Frame::Stdout(PREAMBLE.to_vec()),
            Frame::Stderr((0..=255).collect()),
            Frame::End(CommandStatus::Exited(3)),
            Frame::End(CommandStatus::Signaled(6)),
            Frame::FileData(vec![7; PAYLOAD_BYTES_MAX]),
            Frame::FileEnd,
            Frame::FileMissing,
            Frame::Failure(b"null".to_vec()),
            Frame::Done,
        ]
    }

    fn port(frames: &[Frame]) -> Vec<u8> {
        let mut port = Vec::new();
        let mut writer = FrameWriter::new(&mut port).unwrap();
        frames.iter().for_each(|frame| writer.send(frame).unwrap());
        port
    }

    fn read(bytes: &[u8]) -> (Vec<Frame>, Result<(), FrameError>) {
        let mut reader = FrameReader::default();
        reader.push(bytes);
        let mut frames = Vec::new();
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, Ok(())),
                Err(error) => return (frames, Err(error)),
            }
        }
    }

    #[test]
    fn every_frame_comes_back_as_it_was_sent() {
        assert_eq!(read(&port(&all())), (all(), Ok(())));
    }

    #[test]
    fn pieces_of_any_size_and_noise_before_the_preamble_change_nothing() {
        let mut bytes = b"\0\xff\n<umpa\n".to_vec();
        bytes.extend(port(&all()));
        for piece_bytes in [1, 2, 13, 1000] {
            let mut reader = FrameReader::default();
            let mut frames = Vec::new();
            for piece in bytes.chunks(piece_bytes) {
                reader.push(piece);
                while let Some(frame) = reader.next_frame().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, all());
        }
    }

    #[test]
    fn a_cut_connection_gives_the_whole_frames_and_no_error() {
        let frames = [Frame::Stdout(b"abc".to_vec()), Frame::Done];
        let bytes = port(&frames);
        for end in 0..bytes.len() {
            let (got, result) = read(&bytes[..end]);
            assert_eq!(result, Ok(()), "{end}");
            assert_eq!(got, frames[..got.len()]);
            assert_eq!(got.len(), usize::from(end >= bytes.len() - HEADER_BYTES));
        }
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let frames = [Frame::Stdout(b"abc".to_vec()), Frame::Done];
        let bytes = port(&frames);
        for bit in PREAMBLE.len() * 8..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // A longer payload announced leaves the reader waiting: no frame comes, and so no exit code.
            assert_ne!(read(&changed).0, frames, "bit {bit}");
        }
    }

    #[test]
    fn a_lost_frame_is_noticed() {
        let mut bytes = port(&[]);
        bytes.extend(encode(1, &Frame::Done).unwrap());
        let offset = PREAMBLE.len() as u64;
        assert_eq!(read(&bytes).1, Err(FrameError::Lost { offset, expected: 0, found: 1 }));
    }

    #[test]
    fn what_init_never_sends_is_refused() {
        assert_eq!(read(&[b'x'; 5000]).1, Err(FrameError::NoPreamble { bytes: 5000 }));
        let mut bytes = port(&[]);
        bytes.extend([0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0, 0, 0]);
        let offset = PREAMBLE.len() as u64;
        assert_eq!(read(&bytes).1, Err(FrameError::TooLarge { offset, bytes: 2 << 16 }));
        assert_eq!(decode(5, &[1, 2]), None);
        assert_eq!(decode(0, &[]), None);
        assert!(encode(0, &Frame::Stdout(vec![0; PAYLOAD_BYTES_MAX + 1])).is_err());
    }
}
