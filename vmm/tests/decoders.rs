//! The kept inputs of the fuzzers, once more, without libFuzzer: `fuzz/run` makes new ones.

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub)] // it is a crate of its own elsewhere
mod decoders;

use std::fs;
use std::path::Path;

#[test]
fn kept_inputs_are_taken_as_they_should_be() {
    let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus"));
    if std::env::var_os("VMM_EMULATED").is_some() && !corpus.exists() {
        return println!("there are no kept inputs in an emulated machine");
    }
    for (target, check) in decoders::TARGETS {
        let folder = fs::read_dir(corpus.join(target)).expect("a folder for each target");
        let mut count = 0;
        for entry in folder {
            let path = entry.expect("an entry").path();
            let input = fs::read(&path).expect("an input");
            // What fails says which input it was.
            println!("{}", path.display());
            check(&input);
            count += 1;
        }
        assert!(count > 0, "{target} has no kept inputs");
    }
}
