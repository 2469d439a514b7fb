//! The coding of a watch in its leaf.
//!
//! ```text
//! 52..54  kind, 0: not watched
//! 55      the leaf's own right to write   } what it allows when nobody watches, whatever its
//! 56      the leaf is hidden by itself    } W and P are now
//! ```
//!
//! | kind | armed | after a read | after a write |
//! | --- | --- | --- | --- |
//! | `Bits` | A=0 D=0 | A=1 | A=1 D=1 |
//! | `Writes` | W=0 | the same | own rights |
//! | `Accesses` | P=0 | P=1 W=0 | own rights |
//! | `First` | P=0 | not watched | not watched |
//!
//! So kind, rights and flags are all the state that there is.

use super::{Access, Kind};
use crate::entry::{Entry, EntryFlags};
use umpa_abi::paging;

const KIND_SHIFT: u32 = 52;
const KIND: u64 = 7 << KIND_SHIFT;
const OWN_WRITABLE: u64 = 1 << 55;
const OWN_HIDDEN: u64 = 1 << 56;
const MARKS: u64 = KIND | OWN_WRITABLE | OWN_HIDDEN;
const _: () = assert!(MARKS & (EntryFlags::all().bits() | paging::ADDRESS) == 0);

/// The processor's notes of use.
const USED: EntryFlags = EntryFlags::ACCESSED.union(EntryFlags::DIRTY);

/// What a fault means for a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It isn't watched, or doesn't allow the access by itself either.
    Foreign,
    /// It allows the access already: the processor used an older translation.
    Spurious,
    /// An event; this is the leaf that lets the access through.
    Event(Entry),
}

impl Entry {
    /// How the leaf is watched.
    pub(crate) const fn watch(self) -> Option<Kind> {
        match (self.bits() & KIND) >> KIND_SHIFT {
            1 => Some(Kind::Bits),
            2 => Some(Kind::Writes),
            3 => Some(Kind::Accesses),
            4 => Some(Kind::First),
            _ => None,
        }
    }

    /// The flags that the leaf has when nobody watches it.
    pub(crate) fn rights(self) -> EntryFlags {
        let mut flags = self.flags();
        if let Some(kind) = self.watch() {
            flags.set(EntryFlags::WRITABLE, self.bits() & OWN_WRITABLE != 0);
            flags.set(EntryFlags::HIDDEN, self.bits() & OWN_HIDDEN != 0);
            if kind == Kind::Bits {
                flags.insert(USED);
            }
        }
        flags
    }

    /// The leaf without its watch.
    pub(crate) fn unwatched(self) -> Self {
        Self::from_bits(self.bits() & !MARKS).with_flags(self.rights())
    }

    /// The leaf watched for `kind`, with nothing seen yet.
    pub(super) fn armed(self, kind: Kind) -> Self {
        let own = self.rights();
        let mut flags = own;
        match kind {
            Kind::Bits => flags.remove(USED),
            Kind::Writes => flags.remove(EntryFlags::WRITABLE),
            Kind::Accesses | Kind::First => flags.insert(EntryFlags::HIDDEN),
        }
        self.marked(kind, own).with_flags(flags)
    }

    /// The leaf with other flags of its own. If it is watched it stays so, armed; what the processor
    /// has noted for [`Kind::Bits`] stays too.
    pub(crate) fn with_rights(self, flags: EntryFlags) -> Self {
        match self.watch() {
            None => self.with_flags(flags),
            Some(Kind::Bits) => {
                let noted = flags.difference(USED).union(self.flags().intersection(USED));
                self.marked(Kind::Bits, flags).with_flags(noted)
            }
            Some(kind) => self.unwatched().with_flags(flags).armed(kind),
        }
    }

    /// What a fault of this access means.
    pub(super) fn fault(self, access: Access) -> Meaning {
        let own = self.rights();
        let allows = |flags: EntryFlags| {
            !flags.contains(EntryFlags::HIDDEN)
                && match access {
                    Access::Read => true,
                    Access::Write => flags.contains(EntryFlags::WRITABLE),
                    Access::Fetch => !flags.contains(EntryFlags::NO_EXECUTE),
                }
        };
        let Some(kind) = self.watch().filter(|_| allows(own)) else { return Meaning::Foreign };
        if allows(self.flags()) {
            return Meaning::Spurious;
        }
        Meaning::Event(match kind {
            Kind::First => self.unwatched(),
            Kind::Accesses if access != Access::Write => {
                self.with_flags(own.difference(EntryFlags::WRITABLE))
            }
            _ => self.with_flags(own),
        })
    }

    /// True when a cached translation of this leaf may allow more than `other`, or keep the processor
    /// from noting use in it, or cause a fault that `other` doesn't.
    pub(super) fn needs_flush(self, other: Self) -> bool {
        let rights = EntryFlags::WRITABLE.union(EntryFlags::HIDDEN);
        let (before, after) = (self.flags(), other.flags());
        self.is_present()
            && (before.intersection(rights) != after.intersection(rights)
                || before.intersection(USED).difference(after) != EntryFlags::empty())
    }

    /// True when flags, kind and rights are a state of the table above.
    pub(super) fn is_watch_state(self) -> bool {
        let Some(kind) = self.watch() else { return self.bits() & MARKS == 0 };
        let (own, now) = (self.rights(), self.flags());
        let hidden = EntryFlags::HIDDEN;
        let shown = |flags: EntryFlags| now.symmetric_difference(flags).difference(USED).is_empty();
        own.contains(EntryFlags::USER) == now.contains(EntryFlags::USER)
            && match kind {
                Kind::Bits => shown(own),
                Kind::Writes => shown(own) || shown(own.difference(EntryFlags::WRITABLE)),
                Kind::Accesses => {
                    shown(own) || shown(own.difference(EntryFlags::WRITABLE)) || now.contains(hidden)
                }
                Kind::First => now.contains(hidden),
            }
    }

    fn marked(self, kind: Kind, own: EntryFlags) -> Self {
        let mut marks = (kind as u64) << KIND_SHIFT;
        if own.contains(EntryFlags::WRITABLE) {
            marks |= OWN_WRITABLE;
        }
        if own.contains(EntryFlags::HIDDEN) {
            marks |= OWN_HIDDEN;
        }
        Self::from_bits(self.bits() & !MARKS | marks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umpa_abi::addr::{Frame, PageSize};

    const KINDS: [Kind; 4] = [Kind::Bits, Kind::Writes, Kind::Accesses, Kind::First];
    const READ_ONLY: EntryFlags = EntryFlags::DATA.difference(EntryFlags::WRITABLE);
    const NONE: EntryFlags = READ_ONLY.union(EntryFlags::HIDDEN);
    const RIGHTS: [EntryFlags; 3] = [EntryFlags::DATA, READ_ONLY, NONE];

    fn leaf(flags: EntryFlags) -> Entry {
        Entry::leaf(Frame::new(1024), PageSize::Size2M, flags)
    }

    #[test]
    fn a_watch_takes_no_right_for_ever() {
        for own in RIGHTS {
            for kind in KINDS {
                let armed = leaf(own).armed(kind);
                assert_eq!((armed.watch(), armed.rights()), (Some(kind), own), "{kind:?}");
                assert_eq!((armed.unwatched(), armed.armed(kind)), (leaf(own), armed));
                assert!(armed.is_watch_state() && armed.is_leaf(2) && armed.frame() == Frame::new(1024));
                for other in KINDS {
                    assert_eq!(armed.armed(other), leaf(own).armed(other));
                }
                for other in RIGHTS {
                    assert_eq!(armed.with_rights(other), leaf(other).armed(kind));
                }
            }
        }
    }

    #[test]
    fn each_access_is_an_event_once_or_not_allowed_at_all() {
        for own in RIGHTS {
            for kind in KINDS {
                for first in [Access::Read, Access::Write, Access::Fetch] {
                    let allowed = own != NONE
                        && (first != Access::Write || own == EntryFlags::DATA)
                        && first != Access::Fetch;
                    let meaning = leaf(own).armed(kind).fault(first);
                    let told = match kind {
                        Kind::Bits => false,
                        Kind::Writes => first == Access::Write,
                        Kind::Accesses | Kind::First => true,
                    };
                    match meaning {
                        Meaning::Foreign => assert!(!allowed, "{kind:?} {first:?}"),
                        Meaning::Spurious => assert!(allowed && !told, "{kind:?} {first:?}"),
                        Meaning::Event(after) => {
                            assert!(allowed && told, "{kind:?} {first:?}");
                            assert!(after.is_watch_state());
                            assert_eq!(after.watch(), Some(kind).filter(|&kind| kind != Kind::First));
                            assert_eq!(after.rights(), own);
                            let again = after.fault(first);
                            assert!(!matches!(again, Meaning::Event(_)), "{kind:?} {first:?} {again:?}");
                            let write = matches!(after.fault(Access::Write), Meaning::Event(_));
                            let both = kind == Kind::Accesses && first == Access::Read;
                            assert_eq!(write, both && own == EntryFlags::DATA);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_a_cached_translation_may_hide_is_flushed() {
        let data = leaf(EntryFlags::DATA);
        for kind in KINDS {
            assert!(data.needs_flush(data.armed(kind)), "{kind:?}");
            let back = kind == Kind::Writes;
            assert_eq!(data.armed(kind).needs_flush(data), back, "{kind:?}");
        }
        assert!(!leaf(NONE).needs_flush(leaf(NONE).armed(Kind::First)));
        assert!(!data.armed(Kind::Bits).needs_flush(data.armed(Kind::Bits)));
    }

    #[test]
    fn what_was_noted_outlives_other_rights() {
        let noted = leaf(EntryFlags::DATA).armed(Kind::Bits);
        let noted = noted.with_flags(noted.flags() | EntryFlags::ACCESSED);
        let after = noted.with_rights(READ_ONLY);
        assert_eq!(after.flags(), READ_ONLY.difference(EntryFlags::DIRTY));
        assert_eq!((after.watch(), after.rights()), (Some(Kind::Bits), READ_ONLY));
    }
}
