//! The task with sockets of the loopback device, and an API that says what the test says.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::members::{
    Ask, Handle, Key, LeaseLink, Members, NodeReport, Options, Record, Report, Told,
};

const WITHIN: Duration = Duration::from_secs(10);

/// The API's side.
struct Api {
    ask: watch::Receiver<Ask>,
    tell: mpsc::Sender<Told>,
}

fn api() -> (LeaseLink, Api) {
    let (ask, asked) = watch::channel(Ask::default());
    let (tell, told) = mpsc::channel(16);
    (LeaseLink { ask, told }, Api { ask: asked, tell })
}

fn record(node: &str, renewed: &str) -> Record {
    let renewed = Some(renewed.to_owned());
    Record { node: node.to_owned(), at: None, renewed, lasts: Duration::from_secs(10) }
}

/// A port that nobody has.
fn port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn start(
    node: &str,
    port: u16,
    peers: &[u16],
    key: Option<&Key>,
    dir: &Path,
    link: Option<LeaseLink>,
) -> Handle {
    let peers = peers.iter().map(|port| at(*port)).collect();
    let options = Options {
        node: node.to_owned(),
        port,
        peers,
        key: key.cloned(),
        state_dir: dir.join(node),
        without_dead: false,
    };
    let handle = Handle::start(options, link).unwrap();
    handle.set_addresses(&BTreeSet::from([Ipv4Addr::LOCALHOST.into()]));
    handle
}

fn key(dir: &Path) -> Key {
    std::fs::write(dir.join("key"), "0123456789abcdef").unwrap();
    Key::read(&dir.join("key")).unwrap().unwrap()
}

fn members<const N: usize>(alive: [&str; N], isolated: bool) -> Members {
    Members { alive: alive.map(str::to_owned).into(), isolated, ..Members::default() }
}

async fn until(handle: &Handle, expected: Members) -> Duration {
    let start = Instant::now();
    let mut members = handle.members();
    // What those said last that are gone matters to nobody here.
    let is = |members: &Members| {
        (&members.alive, members.isolated) == (&expected.alive, expected.isolated)
    };
    let waiting = tokio::time::timeout(WITHIN, members.wait_for(is));
    let outcome = waiting.await.map(|changed| drop(changed.unwrap()));
    assert!(outcome.is_ok(), "{expected:?}, but {:?}", *handle.members().borrow());
    start.elapsed()
}

#[tokio::test]
async fn three_agents_find_each_other_by_one_of_them_and_say_goodbye() {
    let dir = tempfile::tempdir().unwrap();
    let key = key(dir.path());
    let ports = [port(), port(), port()];
    let mut handles: Vec<Handle> = ["a", "b", "c"]
        .into_iter()
        .zip(ports)
        .map(|(node, port)| start(node, port, &ports[..1], Some(&key), dir.path(), None))
        .collect();
    for handle in &handles {
        until(handle, members(["a", "b", "c"], false)).await;
    }
    handles[2].finish().await;
    for handle in &handles[..2] {
        until(handle, members(["a", "b"], false)).await;
    }
    // The last one of three cannot know whether it is the others or itself.
    handles[1].finish().await;
    until(&handles[0], members(["a"], true)).await;
}

#[tokio::test]
async fn without_a_key_leases_say_who_is_alive_and_who_does_not_hear_of_them_keeps_quiet() {
    let dir = tempfile::tempdir().unwrap();
    let (link, mut api) = api();
    let handle = start("a", port(), &[], None, dir.path(), Some(link));
    until(&handle, members(["a"], true)).await;
    api.tell.send(Told::All(vec![record("a", "1"), record("b", "1")])).await.unwrap();
    until(&handle, members(["a", "b"], false)).await;
    let asked = api.ask.wait_for(|ask| ask.look.contains_key("b")).await.unwrap();
    assert_eq!(asked.renew_every, Duration::from_millis(2_500));
    drop(asked);
    // The API is away: nobody is dead because of that.
    let time = until(&handle, members(["a", "b"], true)).await;
    assert!(time >= Duration::from_secs(4), "two renewals: {time:?}");
    api.tell.send(Told::Renewed).await.unwrap();
    until(&handle, members(["a", "b"], false)).await;
    api.tell.send(Told::Looked("b".to_owned(), None)).await.unwrap();
    until(&handle, members(["a"], false)).await;
}

#[tokio::test]
async fn an_agent_that_starts_while_the_api_is_away_learns_the_members_from_those_it_knew() {
    let dir = tempfile::tempdir().unwrap();
    let key = key(dir.path());
    let ports = [port(), port(), port(), port()];
    let start = |node, own: usize, peers: &[u16], link| {
        start(node, ports[own], peers, Some(&key), dir.path(), link)
    };
    let b = start("b", 1, &[], None);
    let c = start("c", 2, &ports[1..2], None);
    until(&b, members(["b", "c"], false)).await;
    let known = NodeReport { alive: true, address: Some(at(ports[1])), ..NodeReport::default() };
    let nodes = [("b".to_owned(), known)].into();
    let report = Report { protocol: true, nodes, ..Report::default() };
    report.write(&dir.path().join("a")).unwrap();
    let (link, _api) = api();
    let a = start("a", 0, &[], Some(link));
    until(&a, members(["a", "b", "c"], false)).await;
    until(&c, members(["a", "b", "c"], false)).await;

    // Who has never known anybody cannot say that nobody is there.
    let (link, _other) = api();
    let d = start("d", 3, &[], Some(link));
    until(&d, members(["d"], true)).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(*d.members().borrow(), members(["d"], true));
}
