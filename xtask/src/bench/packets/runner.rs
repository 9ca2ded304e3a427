//! Runs programs through the wrapper, on one processor.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, HashMap, MapData, ProgramArray};
use aya::programs::{ProgramFd, ProgramInfo, TestRun as _, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lbxdp_bench_ebpf::{BACKENDS, Backend, Config, Flow, Frontend, RING, State};
use lbxdp_tests::Netns;
use nix::libc;
use nix::sched::{CloneFlags, setns};

use crate::bench::processors::{processors, stay_on};

/// XDP's verdicts (`enum xdp_action`).
pub const XDP_DROP: u32 = 1;
/// See above.
pub const XDP_PASS: u32 = 2;
/// See above.
pub const XDP_TX: u32 = 3;
/// See above.
pub const XDP_REDIRECT: u32 = 4;

/// The name of the wrapper.
const WRAPPER: &str = "wrap";
/// Bytes by which a program may make a packet longer.
const ROOM: usize = 256;

/// Where frames come in: a namespace and a device in it that carries an XDP program.
#[derive(Debug)]
pub struct Place {
    /// The namespace.
    pub netns: File,
    /// The device's index there.
    pub ifindex: u32,
}

/// What one run came to.
#[derive(Clone, Debug)]
pub struct Run {
    /// Nanoseconds for each packet.
    pub ns: f64,
    /// The verdict on the last one.
    pub verdict: u32,
    /// The flow that comes next in turn.
    pub next: u64,
    /// What the program left of the last one.
    pub bytes: Vec<u8>,
}

/// The loaded wrapper and what it goes to.
pub struct Runner {
    ebpf: Ebpf,
    // With the device that keeps the wrapper attached.
    _home: Netns,
    random: u64,
}

impl Runner {
    /// Loads the object and attaches the wrapper.
    pub fn new(object: &Path) -> Result<Self> {
        let mut ebpf =
            EbpfLoader::new().load_file(object).with_context(|| object.display().to_string())?;
        for (name, program) in ebpf.programs_mut() {
            let program: &mut Xdp = program.try_into().with_context(|| name.to_owned())?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        // Otherwise each run would put the wrapper in the kernel's dispatcher of XDP programs and take
        // it out again, and wait for every processor each time.
        let home = Netns::new("bench");
        // Down, or the kernel's own packets would meet the wrapper.
        home.ip("link add bench0 type veth peer name bench1");
        let wrapper: &mut Xdp = ebpf.program_mut(WRAPPER).context("no wrapper")?.try_into()?;
        let attach = |wrapper: &mut Xdp| -> Result<()> {
            home.enter();
            wrapper.attach("bench0", XdpMode::Driver)?;
            Ok(())
        };
        std::thread::scope(|scope| {
            scope.spawn(|| attach(wrapper)).join().expect("it does not panic")
        })
        .context("attach the wrapper")?;
        Ok(Self { ebpf, _home: home, random: 0x9e37_79b9_7f4a_7c15 })
    }

    /// One of the object's programs.
    pub fn program(&self, name: &str) -> Result<ProgramFd> {
        let program: &Xdp =
            self.ebpf.program(name).with_context(|| format!("no program {name}"))?.try_into()?;
        Ok(program.fd()?.try_clone()?)
    }

    fn array<V: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        Ok(Array::try_from(map)?)
    }

    /// Says which flows [`lbxdp_bench_ebpf::Choice::Listed`] chooses from, from `first` on.
    pub fn list(&mut self, first: u32, flows: &[Flow]) -> Result<()> {
        let mut listed = self.array::<Flow>("listed")?;
        for (number, flow) in (first..).zip(flows) {
            listed.set(number, flow, 0)?;
        }
        Ok(())
    }

    /// Tells the reference programs of one frontend, whose flows come from its own address, and of its
    /// backends.
    pub fn serve(&mut self, frontend: Frontend, backends: &[Backend; BACKENDS]) -> Result<()> {
        let map = self.ebpf.map_mut("frontends").context("no map frontends")?;
        let mut frontends: HashMap<&mut MapData, Frontend, [u8; 4]> = HashMap::try_from(map)?;
        frontends.insert(frontend, frontend.address, 0)?;
        let mut array = self.array::<Backend>("backends")?;
        for (number, backend) in (0..).zip(backends) {
            array.set(number, backend, 0)?;
        }
        let mut ring = self.array::<u32>("ring")?;
        for slot in 0..u32::try_from(RING)? {
            // In no order that a processor could guess.
            let backend = slot.wrapping_mul(0x9e37_79b9) >> 27;
            ring.set(slot, backend, 0)?;
        }
        Ok(())
    }

    /// Runs `program` on as many packets as `config` says, beginning with flow `next` where they take
    /// turns.
    pub fn run(
        &mut self,
        program: &ProgramFd,
        place: &Place,
        config: &Config,
        next: u64,
    ) -> Result<Run> {
        let mut target: ProgramArray<&mut MapData> =
            ProgramArray::try_from(self.ebpf.map_mut("target").context("no map target")?)?;
        target.set(0, program, 0).context("the program cannot be called by the wrapper")?;
        self.run_again(place, config, next)
    }

    /// Runs the program that was run last.
    pub fn run_again(&mut self, place: &Place, config: &Config, next: u64) -> Result<Run> {
        self.array::<Config>("config")?.set(0, config, 0)?;
        let state = State { next, random: self.random, ..State::default() };
        self.array::<State>("state")?.set(0, state, 0)?;

        setns(&place.netns, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
        let (frame, context) = input(config, place.ifindex);
        let mut bytes = vec![0; frame.len() + ROOM];
        let wrapper: &mut Xdp = self.ebpf.program_mut(WRAPPER).context("no wrapper")?.try_into()?;
        let result = wrapper.test_run(TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut bytes),
            ctx_in: Some(&context),
            repeat: config.repeat,
            ..TestRunOptions::default()
        })?;
        let state = self.array::<State>("state")?.get(&0, 0)?;
        ensure!(
            state.iteration == u64::from(config.repeat),
            "the wrapper ran {} times, not {}",
            state.iteration,
            config.repeat
        );
        self.random = state.random;
        bytes.truncate(result.data_size_out as usize);
        let gaps = config.repeat.saturating_sub(1).max(1);
        Ok(Run {
            ns: state.last.saturating_sub(state.first) as f64 / f64::from(gaps),
            verdict: result.return_value,
            next: state.next,
            bytes,
        })
    }
}

/// The frame that a run begins with, and the context of a program whose frames come in by a device.
pub fn input(config: &Config, ifindex: u32) -> (Vec<u8>, Vec<u8>) {
    let frame = config.template.iter().flat_map(|word| word.to_ne_bytes()).collect();
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, config.length, 0, ifindex, 0, 0];
    (frame, context.into_iter().flat_map(u32::to_ne_bytes).collect())
}

/// A program that somebody has loaded, by its id.
pub fn by_id(id: u32) -> Result<ProgramInfo> {
    for program in aya::programs::loaded_programs() {
        let program = program?;
        if program.id() == id {
            return Ok(program);
        }
    }
    bail!("no program has the id {id}")
}

/// Keeps the calling thread, and what it starts from here on, on one processor: the last one that it
/// may use. It goes before others there.
pub fn stay_on_one_processor() -> Result<()> {
    stay_on(processors()?[0])?;
    // A sample that waits for its turn is lost. Niceness would not help: it counts only among the
    // processes of a session.
    let first_of_all = libc::sched_param { sched_priority: 1 };
    // SAFETY: a valid structure; zero is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first_of_all) };
    nix::errno::Errno::result(result).map(drop).context("take precedence")
}
