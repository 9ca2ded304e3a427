//! Sends packets as fast as one processor can.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lbxdp_bench_ebpf::{Config, State, Traffic};
use lbxdp_tests::Netns;
use nix::sched::{CloneFlags, setns};

use crate::bench::packets::input;
use crate::bench::processors::stay_on;

/// Frames that the kernel takes on before it works on those it has: its own choice (`NAPI_POLL_WEIGHT`),
/// and less than a veth device's ring.
const BATCH: u32 = 64;
/// Maps of the other benchmark, which are not needed here.
const UNUSED: [&str; 7] =
    ["listed", "seen", "dnat_flows", "snat_flows", "new_flows", "ring", "backends"];

/// Loads the benchmark's object and of it the programs `names`.
pub fn load(object: &Path, names: &[&str]) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for map in UNUSED {
        loader.map_max_entries(map, 1);
    }
    let mut ebpf = loader.load_file(object).with_context(|| object.display().to_string())?;
    for name in names {
        let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        let program: &mut Xdp = program.try_into()?;
        program.load().with_context(|| format!("load {name}"))?;
    }
    Ok(ebpf)
}

/// Attaches one of its programs to a device for as long as the object is there.
pub fn attach(ebpf: &mut Ebpf, name: &str, netns: &Netns, device: &str) -> Result<()> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    let program: &mut Xdp = program.try_into()?;
    let place = || -> Result<()> {
        netns.enter();
        program.attach(device, XdpMode::Driver)?;
        Ok(())
    };
    std::thread::scope(|scope| scope.spawn(place).join().expect("it does not panic"))
        .with_context(|| format!("attach {name} to {device}"))
}

/// Sends from a device of a namespace.
pub struct Generator {
    ebpf: Ebpf,
    processor: usize,
    // With the device that keeps the program attached.
    _home: Netns,
}

impl Generator {
    /// Loads the program, for this processor.
    pub fn new(object: &Path, processor: usize) -> Result<Self> {
        let mut ebpf = load(object, &["generate"])?;
        // A program that is attached nowhere is put in the kernel's dispatcher of XDP programs for each
        // run and taken out again, which takes many milliseconds.
        let home = Netns::new("generator");
        home.ip("link add here type veth peer name there");
        attach(&mut ebpf, "generate", &home, "here")?;
        Ok(Self { ebpf, processor, _home: home })
    }

    /// Keeps the calling thread on the processor.
    pub fn stay(&self) -> Result<()> {
        stay_on(self.processor)
    }

    fn array<V: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        Ok(Array::try_from(map)?)
    }

    /// Sends as many packets as `config` says, beginning with flow `next`, from the calling thread. How
    /// long that took, work of receivers on this processor included, and the flow that is next.
    pub fn send(
        &mut self,
        netns: &File,
        config: &Config,
        traffic: &Traffic,
        next: u64,
    ) -> Result<(Duration, u64)> {
        self.array::<Config>("config")?.set(0, config, 0)?;
        self.array::<Traffic>("traffic")?.set(0, traffic, 0)?;
        let state = State { next, random: 0x9e37_79b9_7f4a_7c15, ..State::default() };
        self.array::<State>("state")?.set(0, state, 0)?;
        setns(netns, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
        let (frame, context) = input(config, traffic.ifindex);
        let program = self.ebpf.program_mut("generate").context("no generator")?;
        let program: &mut Xdp = program.try_into()?;
        let begin = Instant::now();
        program.test_run(TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: config.repeat,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        })?;
        let took = begin.elapsed();
        Ok((took, self.array::<State>("state")?.get(&0, 0)?.next))
    }
}
