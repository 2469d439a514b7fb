use super::*;

fn roles() -> [Role; 6] {
    [
        Role::Vcpu { vcpu: 5, number: 0, files: vec![6], pool: Some(7) },
        Role::Block { files: vec![6] },
        Role::Watch,
        Role::Command,
        Role::Driver { processes: false },
        Role::Driver { processes: true },
    ]
}

#[test]
fn every_rule_has_a_reason_and_every_filter_compiles() {
    for role in roles() {
        let programs = filters(&role).unwrap();
        assert!(programs.iter().all(|program| !program.is_empty()), "{role:?}");
        let mut rules = rules::allowed(&role);
        rules.extend([rules::answered_with_eperm(), rules::answered_with_enosys(&role)].concat());
        assert!(rules.iter().all(|rule| rule.why.len() > 5), "{role:?}");
    }
}

/// A rule without conditions beside one with some would be no rule at all.
#[test]
fn no_call_has_two_rules_of_which_one_allows_all() {
    for role in roles() {
        let rules = rules::allowed(&role);
        for rule in rules.iter().filter(|rule| rule.when.is_empty()) {
            assert_eq!(rules.iter().filter(|other| other.call == rule.call).count(), 1, "{rule:?}");
        }
    }
}

#[test]
fn threads_that_face_a_guest_open_nothing_and_make_nothing() {
    let never = [
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_creat,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_kill,
        libc::SYS_ptrace,
        libc::SYS_unlink,
        libc::SYS_rename,
        libc::SYS_dup,
        libc::SYS_read,
        libc::SYS_sendmsg,
        libc::SYS_mlock,
    ];
    for role in roles().into_iter().filter(Role::is_a_guests) {
        let rules = rules::allowed(&role);
        assert!(rules.iter().all(|rule| !never.contains(&rule.call)), "{role:?}");
    }
    // Without a page file there is nothing to read or write.
    let block = rules::allowed(&Role::Block { files: Vec::new() });
    assert!(block.iter().all(|rule| rule.call != libc::SYS_pwrite64));
}

#[test]
fn a_thread_without_a_jail_does_what_it_likes() {
    let thread = Jail::Off.spawn(Role::Watch, |_| std::fs::read("/proc/version").is_ok()).unwrap();
    assert_eq!(thread.wait().unwrap().join(), Some(true));
}
