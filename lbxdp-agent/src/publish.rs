//! Values that others wait for.

use tokio::sync::watch;

/// Makes `value` known, and wakes whoever waits for another one than is known. Whether it is another one.
pub fn publish<T: PartialEq>(sender: &watch::Sender<T>, value: T) -> bool {
    sender.send_if_modified(|known| {
        let is_new = *known != value;
        if is_new {
            *known = value;
        }
        is_new
    })
}
