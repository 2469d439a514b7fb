use std::os::unix::fs::MetadataExt;

use super::*;

fn bytes_of(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn transfer(file: &PageFile, slot: u64, content: &mut [u8], write: bool) -> io::Result<usize> {
    let slice = VolatileSlice::from(content);
    let offset = slot * PAGE_BYTES;
    if write { file.storage.write(offset, &slice) } else { file.storage.read(offset, &slice) }
}

#[test]
fn a_file_is_made_grows_and_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pages");
    let file = PageFileConfig::new(&path, Some(8192)).open().unwrap();
    assert_eq!(file.slots, 2);
    assert_eq!(transfer(&file, 1, &mut [7; 4096], true).unwrap(), 4096);
    file.storage.flush().unwrap();
    drop(file);
    assert_eq!(bytes_of(&path), [[0; 4096], [7; 4096]].concat());
    // As large as it is, larger, smaller.
    for (size, slots, bytes) in [(None, 2, 8192), (Some(16384), 4, 16384), (Some(4096), 1, 16384)] {
        let file = PageFileConfig::new(&path, size).open().unwrap();
        assert_eq!((file.slots, path.metadata().unwrap().len()), (slots, bytes));
        let mut page = [1; 4096];
        let slot = 1.min(slots - 1);
        transfer(&file, slot, &mut page, false).unwrap();
        assert_eq!(page, [7 * slot as u8; 4096]);
    }
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
}

#[test]
fn room_is_reserved_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for (reserve, name) in [(false, "sparse"), (true, "reserved")] {
        let path = folder.path().join(name);
        let config = PageFileConfig { reserve, ..PageFileConfig::new(&path, Some(1 << 20)) };
        let _file = config.open().unwrap();
        let has_bytes = path.metadata().unwrap().blocks() * 512;
        assert_eq!(has_bytes >= 1 << 20, reserve, "{name} has {has_bytes}");
    }
}

#[test]
fn a_file_without_a_name_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = PageFileConfig::anonymous(folder.path(), 4096).open().unwrap();
    transfer(&file, 0, &mut [7; 4096], true).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_is_no_page_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let open = |name: &str, size| PageFileConfig::new(at(name), size).open().unwrap_err();
    assert!(matches!(open("none", None), PageFileError::NoSize { .. }));
    assert!(!at("none").exists(), "nothing is made that is of no use");
    for bytes in [0, 1, 4095, 4097, 1 << 63, u64::MAX] {
        assert!(matches!(open("none", Some(bytes)), PageFileError::Size { .. }), "{bytes}");
    }
    assert!(matches!(open("no/folder", Some(4096)), PageFileError::Open { .. }));
    assert!(matches!(open("", Some(4096)), PageFileError::NotAFile { .. }));
    let device = PageFileConfig::new("/dev/null", Some(4096)).open();
    assert!(matches!(device, Err(PageFileError::NotAFile { .. })));
    std::fs::write(at("odd"), [0; 5000]).unwrap();
    assert!(matches!(open("odd", None), PageFileError::Size { bytes: 5000 }));
    let used = PageFileConfig::new(at("used"), Some(4096)).open().unwrap();
    assert!(matches!(open("used", None), PageFileError::InUse { .. }));
    drop(used);
    PageFileConfig::new(at("used"), None).open().unwrap();
}
