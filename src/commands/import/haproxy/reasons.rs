//! Why a line is not translated.

/// `None`: snigate does not need it, as it has no influence on where clients are routed.
pub(super) fn why_not_translated(words: &[&str], section: &str) -> Option<&'static str> {
    let (keyword, argument) = match words {
        [keyword, argument, ..] => (*keyword, *argument),
        [keyword] => (*keyword, ""),
        [] => return Some("not understood"),
    };
    if is_not_needed(keyword, argument) {
        return None;
    }
    Some(match (keyword, argument) {
        ("tcp-check", _) => "no equivalent: health checks connect, or make a TLS handshake and an HTTP request",
        ("stick-table" | "stick" | "cookie", _) | ("option", "persist") => {
            "ignored: clients are only bound to an endpoint by `balance: source_hash`"
        }
        ("hash-type", _) => {
            "ignored: `source_hash` is consistent: when an endpoint comes or goes, only its clients move"
        }
        ("mode", "http") => "ignored: snigate forwards bytes and does not see HTTP inside TLS",
        ("acl", _) => "no translated rule uses it",
        ("tcp-request" | "tcp-response", _) => "no equivalent; to reject clients see `allow`, `deny` and `limits`",
        (
            "http-request"
            | "http-response"
            | "http-after-response"
            | "redirect"
            | "compression"
            | "errorfile"
            | "errorfiles"
            | "errorloc"
            | "capture"
            | "reqadd"
            | "rspadd"
            | "reqrep"
            | "rsprep"
            | "filter"
            | "http-reuse",
            _,
        )
        | (
            "option",
            "forwardfor" | "http-server-close" | "httpclose" | "http-keep-alive" | "forwarded" | "originalto",
        ) => "no equivalent: snigate does not see HTTP inside TLS",
        ("option" | "description" | "id" | "disabled" | "enabled" | "email-alert", _) => "no equivalent",
        _ => match section {
            "resolvers" => return None,
            "peers" | "userlist" | "mailers" | "cache" | "program" | "ring" => "no equivalent",
            _ if keyword.starts_with('.') => "not understood",
            _ => "no equivalent, or not used by a translated rule",
        },
    })
}

fn is_not_needed(keyword: &str, argument: &str) -> bool {
    match keyword {
        "option" => OPTIONS.contains(&argument),
        "mode" => argument != "http",
        _ => KEYWORDS.contains(&keyword) || keyword.starts_with("ssl-") || keyword.starts_with("tune."),
    }
}

#[rustfmt::skip]
const KEYWORDS: &[&str] = &[
    // snigate logs one line for each connection, and has `admin` for statistics.
    "log", "log-format", "log-tag", "log-send-hostname", "unique-id-format", "error-log-format", "stats", "monitor-uri",
    // `limits.connections` follows from the number of file descriptors, `workers` from that of CPUs.
    "maxconn", "fullconn", "nbthread", "nbproc", "cpu-map", "thread-groups", "bind-process", "numa-cpu-mapping",
    // Left to systemd or the container.
    "user", "group", "uid", "gid", "chroot", "daemon", "pidfile", "master-worker", "ulimit-n", "node",
    // Applied where it is used, or part of what snigate always does.
    "ca-base", "crt-base", "retries", "retry-on", "http-check", "timeout",
];

#[rustfmt::skip]
const OPTIONS: &[&str] = &[
    "tcplog", "httplog", "dontlognull", "dontlog-normal", "log-separate-errors", "logasap", "log-health-checks",
    "tcpka", "clitcpka", "srvtcpka", "redispatch", "splice-auto", "splice-request", "splice-response",
    "tcp-smart-accept", "tcp-smart-connect", "nolinger", "contstats", "socket-stats", "abortonclose", "tcp-check",
    "httpchk", "ssl-hello-chk",
];
