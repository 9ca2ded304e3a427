//! Frames that nobody would send: valid ones with bytes changed, cut and padded at random. Whatever
//! they are, a packet about which nothing was counted comes out as it went in.

use lbxdp_common::IPPROTO_SCTP;

use crate::{
    every,
    frames::{Packet, icmp_error},
    nets,
    rig::{
        Fate, Moved, Rig, TCX_DROP, TCX_NEXT, TCX_REDIRECT, XDP_DROP, XDP_PASS, XDP_REDIRECT,
        XDP_TX,
    },
};

/// Marsaglia's xorshift: every run sees the same frames.
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).expect("64 bits") % below
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.next(256)).expect("a byte")
    }

    /// One frame out of `frames`, spoiled; long enough for a test run at tc.
    fn spoil(&mut self, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut frame = frames[self.next(frames.len())].clone();
        for _ in 0..=self.next(4) {
            // Mostly in the headers, where it hurts.
            let at = self.next(frame.len().min(90));
            frame[at] = self.byte();
        }
        let least = 54;
        match self.next(4) {
            0 => frame.truncate(least + self.next(frame.len() - least)),
            1 => frame.resize(frame.len() + self.next(60), 0xee),
            _ => {}
        }
        frame
    }
}

fn check(rig: &mut Rig, frame: &[u8], fate: &Fate, verdicts: &[u32], pass: u32) {
    assert!(verdicts.contains(&fate.verdict), "verdict {} for {frame:02x?}", fate.verdict);
    let is_counted = rig.moved() != Moved::default();
    if !is_counted {
        assert_eq!(fate.verdict, pass, "an uncounted verdict for {frame:02x?}");
        assert_eq!(fate.bytes, frame, "changed and not counted");
    }
}

#[test]
fn spoiled_frames_are_counted_or_come_out_as_they_went_in() {
    let rounds = if lbxdp_tests::long() { 1_000_000 } else { 20_000 };
    let mut rig = Rig::new();
    let mut frames = Vec::new();
    let sctp = nets().map(|net| (net, IPPROTO_SCTP));
    for (net, protocol) in every().into_iter().chain(sctp) {
        let near = rig.remote(net.near, net.node.ip());
        let pod = rig.local(net.pod);
        rig.frontend(net.vip, protocol, &[near]);
        rig.frontend(net.vip2, protocol, &[pod]);
        for to in [net.vip, net.vip2, net.node, net.pod, net.nobody] {
            let plain = Packet::new(protocol, net.client, to);
            frames.push(plain.bytes());
            frames.push(Packet { options: true, ..plain.clone() }.bytes());
            frames.push(Packet { vlan: vec![100], ..plain.clone() }.bytes());
            frames.push(plain.between(net.pod, net.client).bytes());
            // An error about an answer, and two fragments.
            frames.push(icmp_error(&plain, (3, 4, [0, 0, 5, 0]), (2, 0, [0, 0, 5, 0])));
            let long = Packet { payload: vec![7; 150], ..plain };
            frames.extend(long.fragments(1, 96).into_iter().take(2));
        }
    }
    rig.moved();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for _ in 0..rounds {
        let frame = noise.spoil(&frames);
        let fate = rig.xdp(&frame);
        check(&mut rig, &frame, &fate, &[XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT], XDP_PASS);
        let fate = rig.ingress(&frame);
        check(&mut rig, &frame, &fate, &[TCX_NEXT, TCX_DROP, TCX_REDIRECT], TCX_NEXT);
        let fate = rig.egress(&frame);
        check(&mut rig, &frame, &fate, &[TCX_NEXT, TCX_DROP, TCX_REDIRECT], TCX_NEXT);
    }
}
