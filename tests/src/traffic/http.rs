//! Enough HTTP/1.1 for tests: keep-alive, `Content-Length`, nothing else.
//!
//! * `GET /…`: the answer line.
//! * `GET /bytes/N`: N bytes of the pattern.
//! * `POST /upload`: compares the body with the pattern; `bytes=N mismatch=none|OFFSET`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::socket::{Source, tcp};
use super::{Answer, answer_line, ending, pattern};

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

/// Serves until the listener fails.
pub fn serve(listener: &TcpListener, name: &str) -> io::Result<()> {
    loop {
        let (stream, peer) = listener.accept()?;
        let name = name.to_owned();
        // Out of threads is a reason to refuse a connection, not to end.
        let connection = ending::Connection::begin();
        let spawned = thread::Builder::new().stack_size(256 << 10).spawn(move || {
            let _connection = connection;
            // The client went away: its own business.
            let _ = serve_connection(stream, peer, &name);
        });
        drop(spawned);
    }
}

fn serve_connection(stream: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::with_capacity(1 << 16, stream);
    let mut requests = 0;
    while let Some(mut head) = read_head(&mut reader)? {
        requests += 1;
        head.close |= ending::is_asked();
        let mut words = head.first.split(' ');
        let method = words.next().unwrap_or_default();
        let path = words.next().unwrap_or_default();
        if let Some(length) = path.strip_prefix("/bytes/").and_then(|n| n.parse::<u64>().ok()) {
            write_head(&mut writer, length, head.close)?;
            write_pattern(&mut writer, length, None)?;
        } else if method == "POST" {
            let mismatch = check_pattern(&mut reader, head.length, None)?;
            let mismatch = mismatch.map_or_else(|| "none".to_owned(), |at| at.to_string());
            let body = format!("bytes={} mismatch={mismatch}\n", head.length);
            write_head(&mut writer, body.len() as u64, head.close)?;
            writer.write_all(body.as_bytes())?;
        } else {
            io::copy(&mut (&mut reader).take(head.length), &mut io::sink())?;
            let body = answer_line(name, peer, requests) + "\n";
            write_head(&mut writer, body.len() as u64, head.close)?;
            writer.write_all(body.as_bytes())?;
        }
        if head.close {
            break;
        }
    }
    Ok(())
}

struct Head {
    first: String,
    length: u64,
    close: bool,
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut head = Head { first: first.trim_end().to_owned(), length: 0, close: false };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some(head));
        }
        if let Some((key, value)) = line.split_once(':') {
            if key.eq_ignore_ascii_case("content-length") {
                head.length = value.trim().parse().map_err(|_| invalid("content-length"))?;
            } else if key.eq_ignore_ascii_case("connection") {
                head.close = value.trim().eq_ignore_ascii_case("close");
            }
        }
    }
}

fn write_head(writer: &mut impl Write, length: u64, close: bool) -> io::Result<()> {
    let connection = if close { "close" } else { "keep-alive" };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
         Connection: {connection}\r\n\r\n"
    );
    writer.write_all(head.as_bytes())
}

/// Sleeps as needed to stay under so many bytes per second.
struct Pace {
    start: std::time::Instant,
    rate: Option<u64>,
}

impl Pace {
    fn new(rate: Option<u64>) -> Self {
        Self { start: std::time::Instant::now(), rate }
    }

    fn chunk(&self) -> u64 {
        // A hundredth of a second's worth at a time.
        self.rate.map_or(u64::MAX, |rate| (rate / 100).max(1))
    }

    fn wait(&self, done: u64) {
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(done as f64 / rate.max(1) as f64);
            thread::sleep(due.saturating_sub(self.start.elapsed()));
        }
    }
}

fn write_pattern(writer: &mut impl Write, length: u64, rate: Option<u64>) -> io::Result<()> {
    let pace = Pace::new(rate);
    let mut done = 0;
    while done < length {
        let chunk = pattern::at(done, (length - done).min(pace.chunk()));
        writer.write_all(chunk)?;
        done += chunk.len() as u64;
        pace.wait(done);
    }
    Ok(())
}

fn check_pattern(
    reader: &mut impl Read,
    length: u64,
    rate: Option<u64>,
) -> io::Result<Option<u64>> {
    let pace = Pace::new(rate);
    let mut buffer = vec![0; 1 << 16];
    let mut done = 0;
    let mut mismatch = None;
    while done < length {
        let most = (length - done).min(buffer.len() as u64).min(pace.chunk());
        let most = usize::try_from(most).unwrap_or(buffer.len());
        let count = reader.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{done} of {length} bytes"),
            ));
        }
        mismatch = mismatch.or_else(|| pattern::first_mismatch(done, &buffer[..count]));
        done += count as u64;
        pace.wait(done);
    }
    Ok(mismatch)
}

/// Between a connection and its first request. Where the last packet of a handshake and the one behind it
/// meet on two processors, Linux before 6.19 may look for the connection while it takes the place of its
/// half-open one, not find it, and answer with a reset (`inet_ehash_insert` in net/ipv4/inet_hashtables.c).
/// One of some hundred thousand connections met that.
const SETTLED: Duration = Duration::from_micros(100);

/// A client's connection, for several requests.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<TcpStream>,
    host: SocketAddr,
    is_ending: bool,
}

impl Client {
    /// Connects.
    pub fn connect(target: SocketAddr, source: Source, timeout: Duration) -> io::Result<Self> {
        let stream = tcp(target, source, timeout)?;
        thread::sleep(SETTLED);
        let reader = BufReader::with_capacity(1 << 16, stream);
        Ok(Self { reader, host: target, is_ending: false })
    }

    /// The connection's own address and port.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.reader.get_ref().local_addr()
    }

    /// Whether the server has said that its last answer is the last one.
    pub fn is_ending(&self) -> bool {
        self.is_ending
    }

    fn request(&mut self, method: &str, path: &str, length: u64) -> io::Result<()> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n\r\n",
            self.host
        );
        self.reader.get_mut().write_all(head.as_bytes())
    }

    fn response(&mut self) -> io::Result<(u16, u64)> {
        let head = read_head(&mut self.reader)?
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        self.is_ending |= head.close;
        let status = head.first.split(' ').nth(1).and_then(|s| s.parse().ok());
        Ok((status.ok_or_else(|| invalid(head.first))?, head.length))
    }

    fn body(&mut self, length: u64) -> io::Result<String> {
        let mut body = String::new();
        (&mut self.reader).take(length).read_to_string(&mut body)?;
        if body.len() as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(body)
    }

    /// `GET path`: status and body.
    pub fn get(&mut self, path: &str) -> io::Result<(u16, String)> {
        self.request("GET", path, 0)?;
        let (status, length) = self.response()?;
        Ok((status, self.body(length)?))
    }

    /// `GET /` and its answer line.
    pub fn who(&mut self) -> io::Result<Answer> {
        let (status, body) = self.get("/")?;
        if status != 200 {
            return Err(invalid(format!("status {status}: {body}")));
        }
        Answer::parse(&body)
    }

    /// Downloads `length` bytes and compares them with the pattern, at most `rate` bytes per
    /// second.
    pub fn download(&mut self, length: u64, rate: Option<u64>) -> io::Result<()> {
        self.request("GET", &format!("/bytes/{length}"), 0)?;
        let (status, said) = self.response()?;
        if (status, said) != (200, length) {
            return Err(invalid(format!("status {status}, {said} bytes")));
        }
        match check_pattern(&mut self.reader, length, rate)? {
            None => Ok(()),
            Some(at) => Err(invalid(format!("wrong byte at {at}"))),
        }
    }

    /// Uploads `length` bytes of the pattern, which the server compares, at most `rate` bytes per
    /// second.
    pub fn upload(&mut self, length: u64, rate: Option<u64>) -> io::Result<()> {
        self.request("POST", "/upload", length)?;
        write_pattern(self.reader.get_mut(), length, rate)?;
        let (status, said) = self.response()?;
        let body = self.body(said)?;
        if status == 200 && body.trim_end() == format!("bytes={length} mismatch=none") {
            return Ok(());
        }
        Err(invalid(format!("status {status}: {body}")))
    }
}

/// One request on a connection of its own: status and body.
pub fn get(
    target: SocketAddr,
    source: Source,
    path: &str,
    timeout: Duration,
) -> io::Result<(u16, String)> {
    Client::connect(target, source, timeout)?.get(path)
}

/// One `GET /` on a connection of its own: who answered, and whom it saw.
pub fn who(target: SocketAddr, source: Source, timeout: Duration) -> io::Result<Answer> {
    Client::connect(target, source, timeout)?.who()
}
