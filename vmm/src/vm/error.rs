//! Why there is no guest, or no more.

use std::io;
use std::time::Duration;

use umpa_abi::addr::Gva;
use umpa_abi::boot::ARGS_BYTES;

use super::VCPUS_MAX;
use crate::block::DeviceError;
use crate::call::CallError;
use crate::exits::Stop;
use crate::image::ImageError;
use crate::inject::NotInjected;
use crate::jail::JailError;
use crate::memory::MemoryError;
use crate::pool::PoolError;
use crate::signals::SignalError;
use crate::tables::TablesError;
use crate::upcall::UnansweredDemand;
use crate::vcpu::{Registers, VcpuError};
use crate::violation::Violation;

/// Why there is no guest, or no more.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// KVM_CREATE_VM failed.
    #[error("KVM can't create a virtual machine; see the kernel's log (dmesg)")]
    Create(#[source] kvm_ioctls::Error),
    /// The image is no image.
    #[error("the guest image can't be used")]
    Image(#[from] ImageError),
    /// The memory can't be had.
    #[error("the guest's memory can't be made")]
    Memory(#[from] MemoryError),
    /// More memory than the machine has: a guest that takes it all would take the machine with it.
    #[error(
        "{bytes} bytes of memory are more than this machine has with its swap, {host_bytes}: lower --mem or --pool"
    )]
    MoreThanHost {
        /// What was asked for.
        bytes: u64,
        /// What there is.
        host_bytes: u64,
    },
    /// The pool has no room for it.
    #[error("the guest can't share the pool")]
    Pool(#[from] PoolError),
    /// Too many or too few vCPUs.
    #[error("a guest has from 1 to {VCPUS_MAX} vCPUs, not {vcpus}")]
    Vcpus {
        /// How many were asked for.
        vcpus: u64,
    },
    /// The first page tables can't be built.
    #[error("the guest's page tables can't be built")]
    Tables(#[from] TablesError),
    /// The vCPU can't be had.
    #[error("the guest's vCPU can't be made")]
    Vcpu(#[from] VcpuError),
    /// The guest couldn't be stopped, so it isn't started.
    #[error("the guest can't be watched")]
    Signals(#[from] SignalError),
    /// Too many or too long arguments.
    #[error("the arguments take {bytes} bytes, a guest takes {ARGS_BYTES}; none may contain a zero byte")]
    Args {
        /// Their size, each with a zero byte.
        bytes: usize,
    },
    /// A hypercall couldn't be served.
    #[error("a hypercall can't be served")]
    Call(#[from] CallError),
    /// The guest touched what isn't its own.
    #[error("{0}")]
    Violation(Box<Violation>),
    /// The guest touched what isn't its own, and was to hear of it.
    #[error("{violation}\n  {}", ended_because(.why))]
    NotInjected {
        /// What it touched.
        violation: Box<Violation>,
        /// Why it can't hear of that.
        #[source]
        why: NotInjected,
    },
    /// The guest can't go on.
    #[error("the guest stopped {}", place(.registers.as_deref()))]
    Stopped {
        /// Why.
        #[source]
        stop: Stop,
        /// Where; `None` after a triple fault on an AMD processor, which doesn't say it.
        registers: Option<Box<Registers>>,
    },
    /// The block device can't be had.
    #[error("the guest's block device can't be made")]
    Block(#[from] DeviceError),
    /// Its time is up.
    #[error("the guest ran into its timeout of {timeout:?} at rip {rip}; --timeout gives it more")]
    TimedOut {
        /// How long it was.
        timeout: Duration,
        /// Where the guest was.
        rip: Gva,
    },
    /// Its threads have used up the processor time that they may have.
    #[error(
        "the guest has used up its processor time of {cpu_time:?} at rip {rip}; --cpu-time gives it more"
    )]
    CpuTimeUsed {
        /// How much it was.
        cpu_time: Duration,
        /// Where the guest was.
        rip: Gva,
    },
    /// It has written and reported too much.
    #[error(
        "the guest has written and reported more than its limit of {limit_bytes} bytes; --output-limit gives it \
         more"
    )]
    OutputLimit {
        /// How much it may.
        limit_bytes: u64,
    },
    /// Its thread can't be had, or not in the jail.
    #[error("the guest's thread can't be made")]
    Jail(#[from] JailError),
    /// It hasn't answered a demand for frames in time ([`OnUnanswered`](crate::upcall::OnUnanswered)).
    #[error(transparent)]
    Unanswered(Box<UnansweredDemand>),
    /// It couldn't be told of a request for frames.
    #[error("KVM can't interrupt the guest")]
    Interrupt(#[source] io::Error),
    /// SIGINT or SIGTERM.
    #[error("interrupted")]
    Interrupted,
    /// The thread that ran it is gone: a bug of the VMM, whose message is on standard error.
    #[error("the VMM panicked while it ran the guest")]
    Panicked,
    /// `run` after the end.
    #[error("the guest has ended already")]
    Ended,
}

fn ended_because(why: &NotInjected) -> &'static str {
    match why {
        NotInjected::UsedUp { .. } => "it isn't injected any more",
        NotInjected::NoHandler { .. }
        | NotInjected::Delivering
        | NotInjected::Lost
        | NotInjected::Fault(_) => "it can't be injected",
    }
}

/// Where a guest stopped.
fn place(registers: Option<&Registers>) -> String {
    match registers {
        Some(registers) => {
            format!("at rip {}{}\n{registers}", Gva::new(registers.general.rip), registers.on())
        }
        None => "somewhere (AMD processors don't keep the address of a triple fault)".to_owned(),
    }
}
