//! Attacks: what a guest can do to get at what isn't its own, or to take the VMM with it.
//!
//! One file each. To add one, write its file, a line in [`ATTACKS`], and one in the catalogue of
//! `vmm/src/cli/attack`, which says what may stop it. An attack
//!
//! - that is answered checks the answers (a status, an exception, zeros), goes on, and ends with `Ok`:
//!   refused;
//! - that has reached something ends with an error: it broke out;
//! - says before a forbidden access which address it means ([`Attacker::target`]), so that the host can hold
//!   the violation that ends it against that.
//!
//! It has a `variant` (the VMM starts a guest for each) and an `effort` in percent: emulators take less.
//!
//! No attack keeps Rust's rules for the memory that it works with. It keeps its own objects alive, and that
//! is all: what is tried here are the VMM's guarantees.

#![allow(unsafe_code)] // reason: some of them run without any rule, see above

mod answer_forged;
mod apic;
mod attacker;
mod before_hello;
mod beside;
mod beyond_width;
mod boot_page_rewritten;
mod broken_gate;
mod call_area_moved;
mod call_fuzz;
mod call_lengths;
mod call_ops;
mod console_escapes;
mod console_flood;
mod control_registers;
mod copy_given_back;
mod cpuid_probe;
mod crossing_ungranted;
mod debug_registers;
mod deep_recursion;
mod demand_ignored;
mod descriptor_tables;
mod every_power_of_two;
mod exchange_foreign;
mod exchange_full;
mod exchange_huge;
mod exchange_tables;
mod exchange_twice;
mod execute_data;
mod execute_given_back;
mod execute_ungranted;
mod exit_codes;
mod exit_storm;
mod extended_state;
mod far_transfers;
mod fault_storm;
mod forged_results;
mod fragments;
mod giant_leaf_partly;
mod give_in_flight;
mod give_own_code;
mod give_own_stack;
mod given_back;
mod halt;
mod handler_faults;
mod hardware;
mod hoard;
mod interrupts_off;
mod ipi;
mod kick_storm;
mod kvm_clock;
mod large_leaf_given_back;
mod large_leaf_partly;
mod locked_ungranted;
mod mmio_forms;
mod msr_scan;
mod msr_write;
mod neighbours;
mod page_file_beyond;
mod pc_holes;
mod pool;
mod pool_hoard;
mod pool_in_transfer;
mod pool_leftovers;
mod port_forms;
mod port_scan;
pub(crate) mod queue;
mod queue_changes;
mod queue_foreign_data;
mod queue_foreign_headers;
mod queue_fuzz;
mod queue_heads;
mod queue_index_lies;
mod queue_long_chain;
mod queue_loops;
mod queue_wraps;
mod race_calls;
mod race_disk;
mod race_exchanges;
mod race_give;
mod race_given_back;
mod race_pauses;
mod race_queue;
mod race_tables;
mod read_given_back;
mod read_ungranted;
mod recycled;
mod report_flood;
mod request_storm;
mod reserved_bits;
mod root_foreign;
mod self_tables;
mod slot_borders;
mod software_interrupts;
mod spin;
mod spin_beside;
mod stack_given_back;
mod stack_ungranted;
mod string_ungranted;
mod table_given_back;
mod table_in_hole;
mod table_ungranted;
mod tables_from_disk;
mod trap_pages;
mod triple_fault;
mod violation_handler;
mod violation_storm;
mod virtualization;
mod waits;
mod write_code;
mod write_given_back;
mod write_ungranted;
mod wrong_version;

pub use attacker::{Attacker, GP, MARK, PF, Way, perform, raised};

use umpa_abi::boot::BootInfo;

use crate::workloads::Failure;

/// Whether this guest says Hello at its start: all but one do.
#[must_use]
pub(crate) fn greets(boot: &BootInfo) -> bool {
    !boot.args().take(2).eq([&b"attack"[..], before_hello::ATTACK.name.as_bytes()])
}

/// An attack.
#[derive(Debug)]
pub struct Attack {
    /// Lower case, with hyphens.
    pub name: &'static str,
    /// What it tries, in a sentence.
    pub tries: &'static str,
    /// Does it.
    pub run: fn(&mut Attacker<'_>) -> Result<(), Failure>,
}

/// All attacks, in alphabetical order.
pub static ATTACKS: &[&Attack] = &[
    &answer_forged::ATTACK,
    &apic::ATTACK,
    &before_hello::ATTACK,
    &beyond_width::ATTACK,
    &boot_page_rewritten::ATTACK,
    &broken_gate::ATTACK,
    &call_area_moved::ATTACK,
    &call_fuzz::ATTACK,
    &call_lengths::ATTACK,
    &call_ops::ATTACK,
    &console_escapes::ATTACK,
    &console_flood::ATTACK,
    &control_registers::ATTACK,
    &copy_given_back::ATTACK,
    &cpuid_probe::ATTACK,
    &crossing_ungranted::ATTACK,
    &debug_registers::ATTACK,
    &deep_recursion::ATTACK,
    &demand_ignored::ATTACK,
    &descriptor_tables::ATTACK,
    &every_power_of_two::ATTACK,
    &exchange_foreign::ATTACK,
    &exchange_full::ATTACK,
    &exchange_huge::ATTACK,
    &exchange_tables::ATTACK,
    &exchange_twice::ATTACK,
    &execute_data::ATTACK,
    &execute_given_back::ATTACK,
    &execute_ungranted::ATTACK,
    &exit_codes::ATTACK,
    &exit_storm::ATTACK,
    &extended_state::ATTACK,
    &far_transfers::ATTACK,
    &fault_storm::ATTACK,
    &forged_results::ATTACK,
    &fragments::ATTACK,
    &giant_leaf_partly::ATTACK,
    &give_in_flight::ATTACK,
    &give_own_code::ATTACK,
    &give_own_stack::ATTACK,
    &halt::ATTACK,
    &handler_faults::ATTACK,
    &hoard::ATTACK,
    &interrupts_off::ATTACK,
    &ipi::ATTACK,
    &kick_storm::ATTACK,
    &kvm_clock::ATTACK,
    &large_leaf_given_back::ATTACK,
    &large_leaf_partly::ATTACK,
    &locked_ungranted::ATTACK,
    &mmio_forms::ATTACK,
    &msr_scan::ATTACK,
    &msr_write::ATTACK,
    &neighbours::ATTACK,
    &page_file_beyond::ATTACK,
    &pc_holes::ATTACK,
    &pool_hoard::ATTACK,
    &pool_in_transfer::ATTACK,
    &pool_leftovers::ATTACK,
    &port_forms::ATTACK,
    &port_scan::ATTACK,
    &queue_changes::ATTACK,
    &queue_foreign_data::ATTACK,
    &queue_foreign_headers::ATTACK,
    &queue_fuzz::ATTACK,
    &queue_heads::ATTACK,
    &queue_index_lies::ATTACK,
    &queue_long_chain::ATTACK,
    &queue_loops::ATTACK,
    &queue_wraps::ATTACK,
    &race_calls::ATTACK,
    &race_disk::ATTACK,
    &race_exchanges::ATTACK,
    &race_give::ATTACK,
    &race_given_back::ATTACK,
    &race_pauses::ATTACK,
    &race_queue::ATTACK,
    &race_tables::ATTACK,
    &read_given_back::ATTACK,
    &read_ungranted::ATTACK,
    &recycled::ATTACK,
    &report_flood::ATTACK,
    &request_storm::ATTACK,
    &reserved_bits::ATTACK,
    &root_foreign::ATTACK,
    &self_tables::ATTACK,
    &slot_borders::ATTACK,
    &software_interrupts::ATTACK,
    &spin::ATTACK,
    &spin_beside::ATTACK,
    &stack_given_back::ATTACK,
    &stack_ungranted::ATTACK,
    &string_ungranted::ATTACK,
    &table_given_back::ATTACK,
    &table_in_hole::ATTACK,
    &table_ungranted::ATTACK,
    &tables_from_disk::ATTACK,
    &trap_pages::ATTACK,
    &triple_fault::ATTACK,
    &violation_handler::ATTACK,
    &violation_storm::ATTACK,
    &virtualization::ATTACK,
    &waits::ATTACK,
    &write_code::ATTACK,
    &write_given_back::ATTACK,
    &write_ungranted::ATTACK,
    &wrong_version::ATTACK,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_order() {
        assert!(ATTACKS.windows(2).all(|two| two[0].name < two[1].name));
    }

    #[test]
    fn every_attack_says_what_it_tries_in_a_line() {
        for attack in ATTACKS {
            assert!(attack.tries.len() > 20 && attack.tries.len() < 120, "{}", attack.name);
            assert!(!attack.tries.contains(['\n', '\t']), "{}", attack.name);
        }
    }
}
