//! Views, snapshots and guarded blocks in guests, at both privilege levels.

mod program;

use program::{PATIENCE, run, vmm};

fn workload(name: &str, ring: &str, args: &[&str]) -> program::Ended {
    run(&[&["--workload", name, "--ring", ring, "--timeout", PATIENCE, "--"], args].concat())
}

const RINGS: [&str; 2] = ["3", "0"];

#[test]
fn core_views_show_the_same_frames_in_both_rings() {
    for ring in RINGS {
        workload("views", ring, &["4"]).expect(0, &["every word of 4 pages read back at each address"]);
    }
}

/// With large leaves, wired as such and in parts.
#[test]
fn views_of_many_pages_show_the_same_frames() {
    workload("views", "3", &["1024"]).expect(0, &["every word of 1024 pages read back at each address"]);
    workload("views", "0", &["24"]).expect(0, &["every word of 24 pages read back at each address"]);
}

#[test]
fn core_images_are_copied_on_write_in_both_rings() {
    for ring in RINGS {
        workload("snapshot", ring, &["4"])
            .expect(0, &["every word of 4 pages and of their images read back"]);
    }
}

/// Slots below 2 MiB, leaf tables, and large leaves.
#[test]
fn images_of_many_pages_are_copied_on_write() {
    for pages in ["100", "600", "1024"] {
        let wanted = format!("every word of {pages} pages and of their images read back");
        workload("snapshot", "3", &[pages]).expect(0, &[&wanted]);
    }
    workload("snapshot", "0", &["24"]).expect(0, &["every word of 24 pages and of their images read back"]);
}

#[test]
fn core_guarded_blocks_are_named_in_both_rings() {
    for ring in RINGS {
        workload("guarded", ring, &["overrun"])
            .expect(1, &["is past the end, 0 bytes on", "of 1000 bytes", "page fault"]);
    }
}

#[test]
fn guarded_blocks_of_all_sizes_are_named() {
    for ring in RINGS {
        workload("guarded", ring, &[]).expect(0, &["every byte of 10 blocks read back, each named"]);
        workload("guarded", ring, &["freed"]).expect(1, &["is a freed block's, 16 bytes on"]);
        workload("guarded", ring, &["underrun"]).expect(1, &["is before the start, 4000 bytes on"]);
    }
}

#[test]
fn images_are_measured_beside_fork() {
    let output = vmm()
        .args(["bench", "snapshot", "--quick", "--rounds", "1", "--json", "-"])
        .env_remove("VMM_EMULATED")
        .output()
        .expect("vmm can be started");
    let ended = program::Ended::from(output);
    assert_eq!(ended.code, Some(0), "{ended}");
    let json: serde_json::Value = serde_json::from_str(&ended.out).expect("nothing but JSON");
    assert_eq!(json["bench"], "snapshot");
    let works = |series: &serde_json::Value| {
        let points = series["points"].as_array().expect("points").iter();
        points.map(|point| point["work"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    let series = json["series"].as_array().expect("series");
    let names: Vec<_> = series.iter().map(|series| series["name"].as_str().expect("a name")).collect();
    assert_eq!(works(&series[0]), ["snapshot", "write-near", "write", "restore", "drop"]);
    // Under an emulator times mean nothing, and Linux has nothing else to show.
    if series[0]["points"][0]["median"].is_null() {
        assert_eq!(names, ["umpa", "umpa-4k"]);
    } else {
        assert_eq!(names, ["umpa", "umpa-4k", "linux", "linux-thp"]);
        assert_eq!(works(&series[2]), ["snapshot", "write-near", "write", "drop"]);
    }
}
