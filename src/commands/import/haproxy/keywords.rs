//! The keywords of HAProxy, to tell misspelt ones from those without an equivalent.

use crate::commands::{did_you_mean, nearest};

pub(super) const SECTIONS: [&str; 20] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "resolvers",
    "userlist",
    "mailers",
    "cache",
    "program",
    "http-errors",
    "ring",
    "log-forward",
    "fcgi-app",
    "crt-store",
    "traces",
    "log-profile",
    "acme",
    "healthcheck",
];

const TRANSLATED_SECTIONS: [&str; 5] = ["global", "defaults", "frontend", "backend", "listen"];

/// A note on the first word of the line that HAProxy does not know. Lines in sections that are not translated are only
/// checked for misspelt section headers.
pub(super) fn misspelt(words: &[&str], section: &str) -> Option<String> {
    if !TRANSLATED_SECTIONS.contains(&section) {
        let first = *words.first()?;
        return (!nearest(first, TRANSLATED_SECTIONS).is_empty())
            .then(|| unknown("section", first, TRANSLATED_SECTIONS.into_iter()));
    }
    let words = match words {
        ["no" | "default", rest @ ..] if !rest.is_empty() => rest,
        words => words,
    };
    let keyword = *words.first()?;
    if !is_known(keyword) {
        return Some(unknown("keyword", keyword, KEYWORDS.split(' ').chain(SECTIONS)));
    }
    let argument = *words.get(1)?;
    let (what, known) = match keyword {
        "timeout" => ("timeout", TIMEOUTS),
        "option" => ("option", OPTIONS),
        "mode" => ("mode", MODES),
        "tcp-request" => ("rule", TCP_REQUEST),
        _ => return None,
    };
    (!has(known, argument)).then(|| unknown(what, argument, known.split(' ')))
}

pub(super) fn is_known(keyword: &str) -> bool {
    // Conditional blocks are checked where they are read.
    has(KEYWORDS, keyword) || keyword.starts_with('.') || FAMILIES.split(' ').any(|family| keyword.starts_with(family))
}

pub(super) fn is_mode(word: &str) -> bool {
    has(MODES, word)
}

fn has(words: &str, word: &str) -> bool {
    words.split(' ').any(|one| one == word)
}

/// Longer lists of what was expected are not shown.
const MAX_LISTED: usize = 16;
/// Characters of the unknown word.
const MAX_QUOTED: usize = 64;

fn unknown<'k>(what: &str, word: &str, known: impl Iterator<Item = &'k str>) -> String {
    let known: Vec<&str> = known.collect();
    let listed = (known.len() <= MAX_LISTED).then(|| format!("expected one of {}", known.join(", ")));
    let hint = did_you_mean(&nearest(word, known)).or(listed);
    let hint = hint.map_or(String::new(), |hint| format!("; {hint}"));
    format!("unknown {what} `{}`{hint}", word.chars().take(MAX_QUOTED).collect::<String>())
}

const MODES: &str = "tcp http health log spop haterm";

const TCP_REQUEST: &str = "connection session content inspect-delay";

const TIMEOUTS: &str = "\
    check client client-fin client-hs connect http-keep-alive http-request queue server server-fin tarpit tunnel \
    clitimeout contimeout srvtimeout";

const OPTIONS: &str = "\
    abortonclose accept-invalid-http-request accept-invalid-http-response accept-unsafe-violations-in-http-request \
    accept-unsafe-violations-in-http-response allbackups checkcache clitcpka contstats disable-h2-upgrade \
    dontlog-normal dontlognull external-check forceclose forwarded forwardfor h1-case-adjust-bogus-client \
    h1-case-adjust-bogus-server http-buffer-request http-drop-request-trailers http-drop-response-trailers \
    http-ignore-probes http-keep-alive http-no-delay http-pretend-keepalive http-restrict-req-hdr-names \
    http-server-close http-tunnel http-use-htx http-use-proxy-header http_proxy httpchk httpclose httplog httpslog \
    idle-close-on-response independent-streams ldap-check log-health-checks log-separate-errors logasap mysql-check \
    nolinger originalto persist pgsql-check prefer-last-server redis-check redispatch smtpchk socket-stats \
    splice-auto splice-request splice-response spop-check srvtcpka ssl-hello-chk tcp-check tcp-smart-accept \
    tcp-smart-connect tcpka tcplog transparent use-small-buffers";

/// Prefixes of keywords.
const FAMILIES: &str = "\
    51degrees acme. deviceatlas h1- h2- harden. httpclient. lua- ocsp-update. profiling. shm-stats- ssl- tune. wurfl";

const KEYWORDS: &str = "\
    acl anonkey appsession backlog balance bind bind-process block busy-polling ca-base capture chroot clitcpka-cnt \
    clitcpka-idle clitcpka-intvl clitimeout close-spread-time cluster-secret compression contimeout cookie cpu-map \
    cpu-policy cpu-set crt crt-base daemon debug declare default-path default-server default_backend description \
    disabled dispatch dns-accept-family dynamic-cookie-key email-alert enabled error-log-format errorfile errorfiles \
    errorloc errorloc302 errorloc303 expose-deprecated-directives expose-experimental-directives external-check \
    fd-hard-limit filter force-be-switch force-cfg-parser-pause force-persist fullconn gid grace group guid \
    hard-stop-after hash-balance-factor hash-preserve-affinity hash-type http-after-response http-check \
    http-err-codes http-error http-fail-codes http-request http-response http-reuse http-send-name-header id \
    ignore-persist insecure-fork-wanted insecure-setuid-wanted issuers-chain-path key-base limited-quic \
    load-server-state-from-file localpeer log log-format log-format-sd log-send-hostname log-steps log-tag \
    master-worker max-keep-alive-queue max-session-srv-conns maxcompcpuusage maxcomprate maxconn maxconnrate maxpipes \
    maxsessrate maxsslconn maxsslrate maxzlibmem mode monitor monitor-net monitor-uri mworker-max-reloads \
    mworker-prog nbproc nbthread no-memory-trimming no-quic node noepoll noevports nogetaddrinfo nokqueue nopoll \
    noreuseport nosplice numa-cpu-mapping option persist pidfile pp2-never-send-local prealloc-fd presetenv \
    quic-initial quiet rate-limit redirect reqadd reqallow reqdel reqdeny reqiallow reqidel reqideny reqipass reqirep \
    reqitarpit reqpass reqrep reqtarpit resetenv retries retry-on rspadd rspdel rspdeny rspidel rspideny rspirep \
    rsprep server server-state-base server-state-file server-state-file-name server-template set-dumpable set-var \
    set-var-fmt setcap setenv source spread-checks srvtcpka-cnt srvtcpka-idle srvtcpka-intvl srvtimeout stats \
    stats-file stick stick-table stress-level strict-limits tcp-check tcp-request tcp-response thread-group \
    thread-groups timeout trace transparent uid ulimit-n unique-id-format unique-id-header unix-bind unsetenv \
    use-fcgi-app use-server use_backend user warn-blocked-traffic-after zero-warning";
