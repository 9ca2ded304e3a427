//! Bytes in memory: the parser under test on the host reads the same way as in the kernel.

use super::Packet;

impl Packet for &[u8] {
    fn start(&self) -> usize {
        self.as_ptr() as usize
    }

    fn end(&self) -> usize {
        self.as_ptr_range().end as usize
    }

    fn len(&self) -> usize {
        (**self).len()
    }

    fn linearize(&self, _len: usize) {}
}
