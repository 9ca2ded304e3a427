//! A TCP server that says its answer line and then gives back what it gets.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::socket::{Source, tcp};
use super::{Answer, answer_line};

/// Serves until the listener fails.
pub fn serve(listener: &TcpListener, name: &str) -> io::Result<()> {
    loop {
        let (stream, peer) = listener.accept()?;
        let banner = answer_line(name, peer, 0) + "\n";
        let spawned = thread::Builder::new().stack_size(128 << 10).spawn(move || {
            // The client went away: its own business.
            let _ = serve_connection(stream, &banner);
        });
        drop(spawned);
    }
}

fn serve_connection(mut stream: TcpStream, banner: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(banner.as_bytes())?;
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count])?;
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<TcpStream>,
    answer: Answer,
}

impl Client {
    /// Connects and reads who it is.
    pub fn connect(target: SocketAddr, source: Source, timeout: Duration) -> io::Result<Self> {
        let mut reader = BufReader::new(tcp(target, source, timeout)?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let answer = Answer::parse(&line)?;
        Ok(Self { reader, answer })
    }

    /// Who serves this connection, and whom it sees.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Sends a line and expects it back.
    pub fn ping(&mut self, line: &str) -> io::Result<()> {
        self.reader.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut back = String::new();
        self.reader.read_line(&mut back)?;
        if back.strip_suffix('\n') == Some(line) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("sent {line:?}, got {back:?}")))
    }

    /// The connection.
    pub fn into_stream(self) -> TcpStream {
        self.reader.into_inner()
    }
}
