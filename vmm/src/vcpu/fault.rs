//! A page fault that the VMM raises in the guest, and the end without effect of what KVM's emulator is in the
//! midst of.
//!
//! Where memory isn't in a slot, and at CPL 0 with KVM's software MMU everywhere, KVM emulates the instruction
//! and leaves the guest in the midst of it; it insists on finishing it when KVM_RUN is called again (Linux
//! `complete_emulated_mmio`). So it is let finish, with `immediate_exit` so that the guest isn't entered, and
//! what that changes is put back:
//!
//! - a load: KVM reads the answer from `kvm_run` and goes on with the instruction. Registers are put back from
//!   a copy. Memory isn't changed: meanwhile CR3 is [`NOWHERE`], where no table is, so every access that would
//!   follow fails, a store of what was loaded too.
//! - a store: KVM has nothing to do but to forget it. The registers are those after the instruction already; the
//!   caller knows those before it ([`View::before_store`](crate::violation::View::before_store)).
//!
//! The fault is KVM_SET_VCPU_EVENTS's, the address goes with KVM_SET_SREGS. What couldn't be delivered is an
//! event of KVM's still when the guest has left again: that is how a fault within a delivery is known.
//!
//! Cost: 5 system calls for a fault, 12 more for a load.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_SHADOW, kvm_regs, kvm_vcpu_events, kvm_vcpu_events__bindgen_ty_1 as Exception,
};
use umpa_abi::addr::Gva;
use umpa_abi::violation::VECTOR;

use super::Vcpu;
use crate::jail::Jailed;

/// A root table where no memory is ([`umpa_abi::layout`]).
const NOWHERE: u64 = 0;
const INVALID_OPCODE: u8 = 6;
/// Most times that KVM leaves in the midst of one instruction: the most is a load of FXRSTOR's 512 bytes, 8 at
/// a time.
const STEPS_MAX: u32 = 128;

/// Why a fault can't be raised.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// KVM refuses part of the vCPU's state.
    #[error("KVM refuses the vCPU's {state}")]
    State {
        /// Which part.
        state: &'static str,
        /// What it failed with.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM doesn't come to the end of an instruction.
    #[error("KVM emulates an instruction that has no end")]
    Endless,
}

fn state(state: &'static str) -> impl Fn(kvm_ioctls::Error) -> FaultError {
    move |source| FaultError::State { state, source }
}

impl Vcpu {
    /// True if the guest was left while an exception or an interrupt was being delivered to it.
    ///
    /// # Errors
    /// [`FaultError::State`].
    pub fn is_delivering(&self) -> Result<bool, FaultError> {
        let kvm_vcpu_events { exception, interrupt, nmi, .. } =
            self.fd.get_vcpu_events().map_err(state("events"))?;
        // #UD is KVM's own about an instruction that it can't fetch, and only pending, which KVM doesn't tell apart.
        // The fault replaces it; if it was a #UD under delivery, that fault's delivery fails as well.
        let is_raised = exception.injected != 0 && exception.nr != INVALID_OPCODE;
        Ok(is_raised || interrupt.injected | nmi.injected != 0)
    }

    /// Ends the load that KVM emulates as if its instruction hadn't begun.
    ///
    /// # Errors
    /// [`FaultError`]; the guest can't go on then.
    pub fn undo_load(&mut self, jailed: &Jailed) -> Result<(), FaultError> {
        let general = self.fd.get_regs().map_err(state("registers"))?;
        let special = self.fd.get_sregs().map_err(state("special registers"))?;
        let fpu = self.fd.get_fpu().map_err(state("FPU"))?;
        let mut lost = special;
        lost.cr3 = NOWHERE;
        self.fd.set_sregs(&lost).map_err(state("special registers"))?;
        self.finish(jailed)?;
        self.fd.set_sregs(&special).map_err(state("special registers"))?;
        self.fd.set_fpu(&fpu).map_err(state("FPU"))?;
        self.fd.set_regs(&general).map_err(state("registers"))?;
        self.raise(Exception::default())
    }

    /// Forgets the store that KVM emulates; the registers become `before`.
    ///
    /// # Errors
    /// [`FaultError`]; the guest can't go on then.
    pub fn undo_store(&mut self, before: &kvm_regs, jailed: &Jailed) -> Result<(), FaultError> {
        self.finish(jailed)?;
        self.fd.set_regs(before).map_err(state("registers"))
    }

    /// Raises a page fault when the guest is entered next.
    ///
    /// # Errors
    /// [`FaultError::State`].
    pub fn page_fault(&mut self, address: Gva, error_code: u32) -> Result<(), FaultError> {
        let mut special = self.fd.get_sregs().map_err(state("special registers"))?;
        special.cr2 = address.get();
        self.fd.set_sregs(&special).map_err(state("special registers"))?;
        self.raise(Exception { injected: 1, nr: VECTOR, has_error_code: 1, pending: 0, error_code })
    }

    fn raise(&self, exception: Exception) -> Result<(), FaultError> {
        let mut events = self.fd.get_vcpu_events().map_err(state("events"))?;
        events.exception = exception;
        // An exception ends the time in which `sti` and `mov ss` hold interrupts up.
        events.interrupt.shadow = 0;
        events.flags = KVM_VCPUEVENT_VALID_SHADOW;
        self.fd.set_vcpu_events(&events).map_err(state("events"))
    }

    /// Lets KVM finish what it is in the midst of, without entering the guest.
    fn finish(&mut self, _: &Jailed) -> Result<(), FaultError> {
        for _ in 0..STEPS_MAX {
            match &self.kick {
                Some(kick) => kick.hold(),
                None => self.fd.set_kvm_immediate_exit(1),
            }
            if self.fd.run().is_err_and(|error| error.errno() == libc::EINTR) {
                return Ok(());
            }
        }
        Err(FaultError::Endless)
    }
}
