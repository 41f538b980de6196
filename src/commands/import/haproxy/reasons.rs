//! Why a line has no counterpart.

pub(super) fn of(words: &[&str], section: &str) -> &'static str {
    let (keyword, argument) = match words {
        [keyword, argument, ..] => (*keyword, *argument),
        [keyword] => (*keyword, ""),
        [] => return "not understood",
    };
    match (keyword, argument) {
        ("log" | "log-format" | "log-tag" | "log-send-hostname" | "unique-id-format" | "error-log-format", _)
        | (
            "option",
            "tcplog"
            | "httplog"
            | "dontlognull"
            | "dontlog-normal"
            | "log-separate-errors"
            | "logasap"
            | "log-health-checks",
        ) => "not needed: every connection is one log line on standard error",
        ("maxconn" | "fullconn", _) => {
            "not needed: `limits.connections` follows from the descriptors that the process may have, and a route may \
            have `max_connections`"
        }
        ("nbthread" | "nbproc" | "cpu-map" | "thread-groups" | "bind-process" | "numa-cpu-mapping", _) => {
            "not needed: there are as many `workers` as CPUs for this process"
        }
        (
            "user" | "group" | "uid" | "gid" | "chroot" | "daemon" | "pidfile" | "master-worker" | "ulimit-n" | "node",
            _,
        ) => "not needed: left to systemd or the container; see `sandbox`",
        ("stats" | "monitor-uri", _) => "not needed: see `admin`",
        ("ca-base" | "crt-base", _) => "not needed: paths are written in full",
        ("ssl-server-verify", _) => "not needed: each check says whether it verifies",
        ("tune.bufsize", _) => "not needed: how large a hello may be is `limits.hello_bytes`",
        _ if keyword.starts_with("ssl-") || keyword.starts_with("tune.ssl") => "not needed: TLS does not end here",
        _ if keyword.starts_with("tune.") => "not needed: buffers and workers are sized by themselves",
        ("option", "tcpka" | "clitcpka" | "srvtcpka") => "not needed: keepalive is on; see `tcp.keepalive`",
        ("option", "redispatch") | ("retries" | "retry-on", _) => {
            "not needed: when an endpoint cannot be reached, the next one is tried within `connect.timeout`"
        }
        ("option", "splice-auto" | "splice-request" | "splice-response") => "not needed: see `relay`",
        (
            "option",
            "tcp-smart-accept" | "tcp-smart-connect" | "nolinger" | "contstats" | "socket-stats" | "abortonclose",
        ) => "not needed",
        ("option", "tcp-check" | "httpchk" | "ssl-hello-chk") | ("http-check", _) => {
            "not needed: no server that is carried over is checked so"
        }
        ("tcp-check", _) => "without a counterpart: checks connect, or make TLS and perhaps a request",
        ("stick-table" | "stick" | "cookie" | "hash-type", _) | ("option", "persist") => {
            "no client is tied to an endpoint"
        }
        ("mode", "http") => "bytes are relayed as they are, so what HAProxy did to HTTP inside TLS is not done",
        ("mode", _) => "not needed: bytes are relayed as they are",
        ("timeout", "queue") => "not needed: connections do not wait for an endpoint",
        ("timeout", "check") => "not needed: no server that is carried over is checked",
        ("timeout", _) => "not needed: what is inside TLS is not seen; see `timeouts`",
        ("acl", _) => "no rule that is carried over uses it",
        ("tcp-request" | "tcp-response", _) => {
            "without a counterpart; if it kept clients out, see `allow`, `deny` and `limits`"
        }
        (
            "http-request"
            | "http-response"
            | "http-after-response"
            | "redirect"
            | "compression"
            | "errorfile"
            | "errorloc"
            | "capture"
            | "reqadd"
            | "rspadd"
            | "reqrep"
            | "rsprep"
            | "filter"
            | "http-reuse"
            | "errorfiles",
            _,
        )
        | (
            "option",
            "forwardfor" | "http-server-close" | "httpclose" | "http-keep-alive" | "forwarded" | "originalto",
        ) => "without a counterpart: what is inside TLS is not seen",
        ("option", _) => "without a known counterpart",
        ("description" | "id" | "disabled" | "enabled" | "email-alert", _) => "without a counterpart",
        (_, _) => match section {
            "resolvers" => "not needed: names are looked up in the background, by the system's resolver",
            "peers" | "userlist" | "mailers" | "cache" | "program" | "ring" => "without a counterpart",
            _ if keyword.starts_with('.') => "not understood",
            _ => "without a counterpart, or nothing that is carried over leads here",
        },
    }
}
