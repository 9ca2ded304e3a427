//! Whether a node itself is there, when its agent is not.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout_at};

/// One packet may be lost, and two.
const TRIES: u32 = 3;
/// For so long an answer is waited for.
const TRY_FOR: Duration = Duration::from_millis(120);

/// Whether a kernel answers there. Members talk UDP, so nobody listens at the same port of TCP, and whoever
/// lives refuses. Unlike ICMP, that is not limited where a thousand ask at once.
pub(super) async fn is_there(at: SocketAddr) -> bool {
    for _ in 0..TRIES {
        let end = tokio::time::Instant::now() + TRY_FOR;
        match timeout_at(end, TcpStream::connect(at)).await {
            Ok(Ok(_)) => return true,
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return true,
            // No neighbour and no route is what one finds of a node that is gone, and may pass.
            Ok(Err(_)) => sleep_until(end).await,
            Err(_) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kernel_that_refuses_is_there_and_one_that_is_silent_is_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        assert!(is_there(at).await);
        drop(listener);
        assert!(is_there(at).await);
        // No host is there, and the kernel says so.
        assert!(!is_there("255.255.255.255:1".parse().unwrap()).await);
    }
}
