//! Iterators over vectors.

use core::iter::FusedIterator;
use core::ptr;

use umpa::blocks::Machine;

use super::EVector;

/// The elements of a vector, by value.
pub struct IntoIter<'h, 'u, 'a, T, M: Machine + Send> {
    /// Has the memory, but no elements.
    vector: EVector<'h, 'u, 'a, T, M>,
    /// The elements that are left: places `[next, end)`.
    next: usize,
    end: usize,
}

impl<T, M: Machine + Send> Iterator for IntoIter<'_, '_, '_, T, M> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let at = self.next;
        if at == self.end {
            return None;
        }
        self.next += 1;
        // SAFETY: the place had an element, which isn't the iterator's any more.
        Some(unsafe { self.vector.start.add(at).read() })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
    }
}

impl<T, M: Machine + Send> DoubleEndedIterator for IntoIter<'_, '_, '_, T, M> {
    fn next_back(&mut self) -> Option<T> {
        if self.next == self.end {
            return None;
        }
        self.end -= 1;
        // SAFETY: as in `next`.
        Some(unsafe { self.vector.start.add(self.end).read() })
    }
}

impl<T, M: Machine + Send> ExactSizeIterator for IntoIter<'_, '_, '_, T, M> {}
impl<T, M: Machine + Send> FusedIterator for IntoIter<'_, '_, '_, T, M> {}

impl<T, M: Machine + Send> Drop for IntoIter<'_, '_, '_, T, M> {
    fn drop(&mut self) {
        let (start, left) = (self.vector.start.as_ptr().wrapping_add(self.next), self.end - self.next);
        // SAFETY: these elements are left; the vector has none, so it frees its memory only.
        unsafe { ptr::slice_from_raw_parts_mut(start, left).drop_in_place() };
    }
}

impl<'h, 'u, 'a, T, M: Machine + Send> IntoIterator for EVector<'h, 'u, 'a, T, M> {
    type Item = T;
    type IntoIter = IntoIter<'h, 'u, 'a, T, M>;

    fn into_iter(self) -> Self::IntoIter {
        let (vector, end) = self.into_empty();
        IntoIter { vector, next: 0, end }
    }
}

impl<'v, T, M: Machine + Send> IntoIterator for &'v EVector<'_, '_, '_, T, M> {
    type Item = &'v T;
    type IntoIter = core::slice::Iter<'v, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'v, T, M: Machine + Send> IntoIterator for &'v mut EVector<'_, '_, '_, T, M> {
    type Item = &'v mut T;
    type IntoIter = core::slice::IterMut<'v, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}
