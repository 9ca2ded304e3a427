//! `BPF_PROG_TEST_RUN` without anything around it: for many packets, and for several processors.

use std::os::fd::{AsRawFd as _, OwnedFd};

/// The part of `union bpf_attr` that is about test runs.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _pad: u32,
}

/// A program and what it runs with.
pub struct Runner {
    program: OwnedFd,
    context: Vec<u32>,
    is_xdp: bool,
}

impl Runner {
    /// The context is that of the program's type; an XDP program's is told each frame's length.
    pub fn new(program: OwnedFd, context: Vec<u32>, is_xdp: bool) -> Self {
        Self { program, context, is_xdp }
    }

    /// Runs the program on this processor. The verdict; the frame becomes what the program makes of
    /// it, which is as long.
    pub fn run(&self, frame: &mut [u8]) -> u32 {
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        let length = u32::try_from(frame.len()).expect("short");
        let mut context = self.context.clone();
        if self.is_xdp {
            // struct xdp_md: data, data_end
            context[1] = length;
        }
        let mut attr = TestRun {
            prog_fd: self.program.as_raw_fd().cast_unsigned(),
            data_size_in: length,
            data_size_out: length,
            data_in: frame.as_ptr() as u64,
            data_out: frame.as_mut_ptr() as u64,
            ctx_size_in: u32::try_from(size_of_val(context.as_slice())).expect("small"),
            ctx_in: context.as_ptr() as u64,
            ..TestRun::default()
        };
        // SAFETY: the kernel reads and writes the buffers, which live as long, in the sizes given.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>())
        };
        assert_eq!(result, 0, "a test run: {}", std::io::Error::last_os_error());
        assert_eq!(attr.data_size_out, length, "the frame keeps its length");
        attr.retval
    }
}
