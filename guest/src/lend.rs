//! Handlers that are lent to an upcall: what page faults ([`fault`](crate::fault)) and requests for frames
//! ([`upcall`](crate::upcall)) have in common.
//!
//! A handler is lent while a function runs and may be called at any instruction of it, so nobody else
//! may look at its state; [`Scope::pause`] takes it back for a while. What a handler needs (tables,
//! flushes, umpa) is the handler's alone by the rules of borrowing, and it can't be run in the midst of a
//! change to it.
//!
//! Invariant: whoever calls the handler in a [`Place`] does so only while it is lent and not taken back,
//! and never within such a call.

#![allow(unsafe_code)] // reason: a handler without its type, reached through a bare pointer

use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;

use crate::processors;

/// A handler without its type.
pub(crate) struct Registered<U: Upcall> {
    handler: *mut (),
    call: unsafe fn(*mut (), &U::Event) -> U::Answer,
}

impl<U: Upcall> Clone for Registered<U> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<U: Upcall> Copy for Registered<U> {}

impl<U: Upcall> Registered<U> {
    /// Calls it.
    ///
    /// # Safety
    /// It is lent, not taken back, and this isn't within another call.
    pub(crate) unsafe fn call(&self, event: &U::Event) -> U::Answer {
        // SAFETY: what `Lent::new` wrote together: a handler and the function for its type. It is borrowed
        // as long as it is registered, and nobody else has it: the caller's promise.
        unsafe { (self.call)(self.handler, event) }
    }
}

/// Where the handler of an upcall stands.
pub struct Place<U: Upcall>(UnsafeCell<Option<Registered<U>>>);

impl<U: Upcall> Place<U> {
    /// Nobody.
    pub(crate) const fn empty() -> Self {
        Self(UnsafeCell::new(None))
    }

    /// Who is there.
    ///
    /// # Safety
    /// The handler is lent and not taken back: nobody writes the place.
    pub(crate) unsafe fn get(&self) -> Option<Registered<U>> {
        // SAFETY: the caller's promise.
        unsafe { *self.0.get() }
    }
}

// SAFETY: the first processor alone lends, and is called. A place is written by `Lent` only, while taken back,
// and read by `get` only, while it isn't: never both.
unsafe impl<U: Upcall> Sync for Place<U> {}

/// A kind of upcall.
pub trait Upcall: Sized + 'static {
    /// What handlers are told.
    type Event;
    /// What they answer.
    type Answer;

    /// Where the handler stands.
    fn place() -> &'static Place<Self>;
    /// Takes the handler back; what is returned says whether it was lent.
    fn take_back() -> u32;
    /// Lends it again, as `take_back` found it.
    fn lend(lent: u32);
    /// What lends it whatever was before.
    const LENT: u32;
}

/// Handles an upcall.
pub trait Handles<U: Upcall> {
    /// Does.
    fn handle(&mut self, event: &U::Event) -> U::Answer;
}

/// Calls the handler behind a pointer that has lost its type.
///
/// # Safety
/// `handler` is a valid `H`, and nobody else uses it now.
unsafe fn call<U: Upcall, H: Handles<U>>(handler: *mut (), event: &U::Event) -> U::Answer {
    // SAFETY: as above.
    unsafe { (*handler.cast::<H>()).handle(event) }
}

/// A handler in its place; what was there before comes back when this is dropped.
pub(crate) struct Lent<U: Upcall> {
    outer: Option<Registered<U>>,
    outer_lent: u32,
}

impl<U: Upcall> Lent<U> {
    /// # Safety
    /// Until the result is dropped `handler` is valid, and used by nobody else while lent. Results are
    /// dropped in the reverse order.
    ///
    /// # Panics
    /// On another processor than the first.
    pub(crate) unsafe fn new<H: Handles<U>>(handler: *mut H) -> Self {
        assert!(processors::current() == 0, "only the first processor lends handlers");
        let outer_lent = U::take_back();
        let registered = Registered { handler: handler.cast(), call: call::<U, H> };
        // SAFETY: taken back (see `Place`).
        let outer = unsafe { U::place().0.get().replace(Some(registered)) };
        U::lend(U::LENT);
        Self { outer, outer_lent }
    }
}

impl<U: Upcall> Drop for Lent<U> {
    fn drop(&mut self) {
        U::take_back();
        // SAFETY: taken back (see `Place`).
        unsafe { *U::place().0.get() = self.outer };
        U::lend(self.outer_lent);
    }
}

/// A handler that is lent.
pub struct Scope<'h, H, U> {
    handler: *mut H,
    lifetime: PhantomData<(&'h mut H, U)>,
}

impl<H, U> fmt::Debug for Scope<'_, H, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}

impl<H: Handles<U>, U: Upcall> Scope<'_, H, U> {
    /// # Safety
    /// `handler` is lent to `U` as long as the result lives, and reached by nothing else.
    pub(crate) unsafe fn new(handler: *mut H) -> Self {
        Self { handler, lifetime: PhantomData }
    }

    /// Takes the handler back while `work` runs: a page fault in it is reported, a request waits.
    pub fn pause<R>(&mut self, work: impl FnOnce(&mut H) -> R) -> R {
        let lent = U::take_back();
        // SAFETY: the handler is borrowed for longer than this value lives (`new`); `self` is borrowed, so
        // there is no other `pause` of it; taken back, so no upcall uses it either. (A scope within
        // `work` lends another handler.)
        let result = work(unsafe { &mut *self.handler });
        U::lend(lent);
        result
    }
}

/// Runs `body` with `handler` lent. Scopes nest; the innermost handler is asked, and no other.
pub(crate) fn scope<U: Upcall, H: Handles<U>, R>(
    handler: &mut H,
    body: impl FnOnce(&mut Scope<'_, H, U>) -> R,
) -> R {
    let handler: *mut H = handler;
    // SAFETY: the handler is borrowed until the end of this function, `lent` is dropped there, and
    // `body` reaches the handler by `pause` only. Scopes end in reverse order, being calls.
    let (lent, mut scope) = unsafe { (Lent::new(handler), Scope::new(handler)) };
    let result = body(&mut scope);
    drop(lent);
    result
}
