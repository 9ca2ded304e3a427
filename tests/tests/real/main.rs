//! Programs that were not written for this: nginx, dnsmasq, curl, the C library's resolver.

mod dns;
mod proxy;
