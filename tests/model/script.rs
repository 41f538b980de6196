//! What is tried: a configuration, and steps generated from a seed. Steps name connections by their number, so that any of
//! them can be left out.

use std::fmt::{self, Display, Formatter};

use fastrand::Rng;

pub const ENDPOINTS: usize = 4;
pub const CLUSTER: &str = "one";

#[derive(Clone)]
pub struct Script {
    pub seed: u64,
    pub config: Config,
    pub steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Endpoint,
}

/// Where the file's routes lead.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub routes: Vec<Route>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub kind: Kind,
    /// By index, and whether they are backups.
    pub endpoints: Vec<(usize, bool)>,
    pub on_remove: OnRemove,
    pub balance: &'static str,
    /// Whether endpoints get a PROXY header.
    pub sends_header: bool,
    pub check: Check,
    /// The endpoints are those that the name has, whichever are listed.
    pub is_named: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    None,
    Connects,
    /// Over TLS and HTTP, so that an endpoint can answer that it is unready.
    Asks,
}

/// What a route matches, which is its name, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `a.example`
    Exact,
    /// `a.example`, from clients that offer h2.
    Alpn,
    /// `a.example`, from clients whose PROXY header names the cluster.
    Tlv,
    /// `*.b.example`
    Wildcard,
    /// `d.example`, but not from the network of [`From::Denied`].
    Guarded,
    /// All others.
    Any,
}

pub const KINDS: [Kind; 6] = [Kind::Exact, Kind::Alpn, Kind::Tlv, Kind::Wildcard, Kind::Guarded, Kind::Any];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRemove {
    Keep,
    Cut,
    Drain,
}

/// A client that connects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    pub number: usize,
    pub from: From,
    pub name: Name,
    pub offers_h2: bool,
    /// The length of the hello's record is padded to this.
    pub padded_to: usize,
    /// The hello is split into records of this size.
    pub records: Option<usize>,
    /// What is sent at first is split into segments of this size.
    pub segments: Option<usize>,
    /// Bytes that follow the hello at once.
    pub early: usize,
    pub sends: Sends,
}

/// Where a client comes from, and with which PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Plain,
    Denied,
    /// With a header at a listener that expects none.
    PlainWithHeader,
    HeaderV1,
    HeaderV2,
    HeaderV2WithTlv,
    /// From where a header is required.
    WithoutHeader,
    /// With a header, but from elsewhere.
    Unlisted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Exact,
    BelowWildcard,
    /// The name that the wildcard does not cover.
    Apex,
    Guarded,
    Unknown,
    None,
    Literal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sends {
    Hello,
    /// Only a part of it.
    Part(After),
    Nothing,
    Garbage,
}

/// What follows the part of a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Silence,
    Fin,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Serves,
    Refuses,
    /// Packets to it are lost.
    Hangs,
    /// It accepts and resets.
    Resets,
    /// It serves, and answers checks that ask with 500.
    Unready,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    All,
    Route(Kind),
    Endpoint(usize),
    Client(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub connection: usize,
    pub up: usize,
    pub down: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    Reload(Config),
    BadReload(&'static str),
    Drain(Kind, Option<usize>),
    Resume(Kind, Option<usize>),
    Close(Filter),
    /// With the configuration that is on disk.
    Upgrade,
    /// With another one.
    UpgradeTo(Config),
    /// The name has these endpoints now.
    Name(Vec<usize>),
    /// For a while, the name server fails.
    NameServerFails,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Arrive(Arrival),
    Transfer(Transfer),
    Finish(usize, Side),
    Reset(usize, Side),
    /// The client reads no more, and the endpoint sends until all buffers are full.
    Stall(usize),
    /// It reads again.
    Read(usize),
    /// From now on, and with the reset of all its connections if it dies.
    Behave {
        endpoint: usize,
        behaviour: Behaviour,
        dies: bool,
    },
    Operate(Operation),
    /// While an operation is carried out, data is on the way and clients arrive.
    Together {
        operation: Operation,
        transfers: Vec<Transfer>,
        arrivals: Vec<Arrival>,
    },
    /// Until all that are silent are parked.
    Park,
}

impl Script {
    /// `has_names`: whether there are routes to a name.
    pub fn generate(seed: u64, has_names: bool) -> Self {
        let mut generator = Generator { random: Rng::with_seed(seed), arrived: 0, has_names };
        let config = generator.config();
        let count = generator.random.usize(8..32);
        let steps = (0..count).map(|_| generator.step()).collect();
        Self { seed, config, steps }
    }
}

struct Generator {
    random: Rng,
    arrived: usize,
    has_names: bool,
}

impl Generator {
    fn step(&mut self) -> Step {
        if self.arrived == 0 {
            return Step::Arrive(self.arrival());
        }
        match self.random.u8(..32) {
            0..9 => Step::Arrive(self.arrival()),
            9..13 => Step::Transfer(self.transfer()),
            13..16 => Step::Finish(self.connection(), self.side()),
            16 => Step::Reset(self.connection(), self.side()),
            17 => Step::Stall(self.connection()),
            18 => Step::Read(self.connection()),
            19 | 20 => {
                let behaviour = self.one_of(&[
                    Behaviour::Serves,
                    Behaviour::Refuses,
                    Behaviour::Refuses,
                    Behaviour::Hangs,
                    Behaviour::Resets,
                    Behaviour::Unready,
                    Behaviour::Unready,
                ]);
                let dies = behaviour != Behaviour::Serves && self.random.u8(..3) == 0;
                Step::Behave { endpoint: self.random.usize(..ENDPOINTS), behaviour, dies }
            }
            21 => Step::Behave { endpoint: self.random.usize(..ENDPOINTS), behaviour: Behaviour::Serves, dies: false },
            22..27 => Step::Operate(self.operation()),
            27..30 => {
                let operation = self.operation();
                let transfers = (0..self.random.usize(..3)).map(|_| self.transfer()).collect();
                let arrivals = (0..self.random.usize(..3)).map(|_| self.arrival()).collect();
                Step::Together { operation, transfers, arrivals }
            }
            _ => Step::Park,
        }
    }

    fn operation(&mut self) -> Operation {
        if self.has_names && self.random.u8(..4) == 0 {
            return match self.random.u8(..5) {
                0 => Operation::NameServerFails,
                _ => Operation::Name(self.endpoints()),
            };
        }
        match self.random.u8(..12) {
            0..4 => Operation::Reload(self.config()),
            4 => Operation::BadReload(self.one_of(&[
                "routes: [",
                "routez: []\n",
                "routes: []\n",
                "timeouts: {drain: 10}\n",
            ])),
            5 | 6 => Operation::Drain(self.kind(), self.endpoint()),
            7 => Operation::Resume(self.kind(), self.endpoint()),
            8 => Operation::Close(match self.random.u8(..4) {
                0 => Filter::All,
                1 => Filter::Route(self.kind()),
                2 => Filter::Endpoint(self.random.usize(..ENDPOINTS)),
                _ => Filter::Client(self.connection()),
            }),
            9 | 10 => Operation::Upgrade,
            _ => Operation::UpgradeTo(self.config()),
        }
    }

    fn config(&mut self) -> Config {
        let mut routes: Vec<Route> = Vec::new();
        for kind in KINDS {
            if self.random.u8(..3) > 0 || (kind == Kind::Any && routes.is_empty()) {
                routes.push(self.route(kind));
            }
        }
        Config { routes }
    }

    fn route(&mut self, kind: Kind) -> Route {
        let endpoints = self.endpoints();
        let backups = self.random.u8(..4) == 0;
        Route {
            kind,
            endpoints: endpoints.iter().enumerate().map(|(at, endpoint)| (*endpoint, backups && at > 0)).collect(),
            on_remove: self.one_of(&[OnRemove::Keep, OnRemove::Cut, OnRemove::Drain]),
            balance: self.one_of(&["least_connections", "round_robin", "random", "source_hash"]),
            sends_header: self.random.u8(..4) == 0,
            check: self.one_of(&[Check::None, Check::None, Check::Connects, Check::Asks]),
            is_named: self.has_names && self.random.bool(),
        }
    }

    /// Some of them.
    fn endpoints(&mut self) -> Vec<usize> {
        let mut endpoints: Vec<usize> = (0..ENDPOINTS).collect();
        self.random.shuffle(&mut endpoints);
        endpoints.truncate(self.random.usize(1..4));
        endpoints
    }

    fn arrival(&mut self) -> Arrival {
        let number = self.arrived;
        self.arrived += 1;
        let from = match self.random.u8(..20) {
            0..11 => From::Plain,
            11 => From::Denied,
            12 => From::PlainWithHeader,
            13 | 14 => From::HeaderV1,
            15 => From::HeaderV2,
            16 | 17 => From::HeaderV2WithTlv,
            18 => From::WithoutHeader,
            _ => From::Unlisted,
        };
        let name = match self.random.u8(..16) {
            0..7 => Name::Exact,
            7..10 => Name::BelowWildcard,
            10 => Name::Apex,
            11 | 12 => Name::Guarded,
            13 => Name::Unknown,
            14 => Name::None,
            _ => Name::Literal,
        };
        let sends = match self.random.u8(..30) {
            0 => Sends::Part(After::Silence),
            1 => Sends::Part(After::Fin),
            2 => Sends::Part(After::Reset),
            3 => Sends::Nothing,
            4 => Sends::Garbage,
            _ => Sends::Hello,
        };
        Arrival {
            number,
            from,
            name,
            offers_h2: self.random.u8(..4) == 0,
            padded_to: self.one_of(&[0, 0, 600, 1800, 5000]),
            records: (self.random.u8(..3) == 0).then(|| self.random.usize(16..400)),
            segments: (self.random.u8(..3) == 0).then(|| self.random.usize(40..600)),
            early: if self.random.u8(..3) == 0 { self.random.usize(1..30_000) } else { 0 },
            sends,
        }
    }

    fn transfer(&mut self) -> Transfer {
        let connection = self.connection();
        Transfer { connection, up: self.size(), down: self.size() }
    }

    /// As often a few bytes as many.
    fn size(&mut self) -> usize {
        let magnitude = self.random.u32(..20);
        self.random.usize(..1 << magnitude)
    }

    /// Rather one of the last.
    fn connection(&mut self) -> usize {
        let back = self.random.usize(..self.arrived.clamp(1, 6));
        self.arrived.max(1) - 1 - back
    }

    fn kind(&mut self) -> Kind {
        self.one_of(&[Kind::Exact, Kind::Exact, Kind::Alpn, Kind::Tlv, Kind::Wildcard, Kind::Guarded, Kind::Any])
    }

    fn endpoint(&mut self) -> Option<usize> {
        (self.random.u8(..4) > 0).then(|| self.random.usize(..ENDPOINTS))
    }

    fn side(&mut self) -> Side {
        self.one_of(&[Side::Client, Side::Endpoint])
    }

    fn one_of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.random.usize(..some.len())]
    }
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Alpn => "alpn",
            Self::Tlv => "tlv",
            Self::Wildcard => "wildcard",
            Self::Guarded => "guarded",
            Self::Any => "any",
        }
    }
}

impl OnRemove {
    pub fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Cut => "cut",
            Self::Drain => "drain",
        }
    }
}

impl Config {
    pub fn route(&self, kind: Kind) -> Option<&Route> {
        self.routes.iter().find(|route| route.kind == kind)
    }
}

impl Route {
    pub fn has(&self, endpoint: usize) -> bool {
        self.endpoints.iter().any(|(index, _)| *index == endpoint)
    }

    /// Whether it may lead there: a name may have had any endpoint.
    pub fn may_have(&self, endpoint: usize) -> bool {
        self.is_named || self.has(endpoint)
    }
}

impl Display for Script {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(out, "seed {}, which starts with {}", self.seed, self.config)?;
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(out, "{:3}. {step}", number + 1)?;
        }
        Ok(())
    }
}

impl Display for Config {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        for Route { kind, endpoints, on_remove, balance, sends_header, check, is_named } in &self.routes {
            write!(out, "\n       {} ->{}", kind.name(), if *is_named { " the name" } else { "" })?;
            for (endpoint, is_backup) in endpoints.iter().filter(|_| !is_named) {
                write!(out, " e{endpoint}{}", if *is_backup { " (backup)" } else { "" })?;
            }
            write!(out, ", on_remove {}, {balance}", on_remove.name())?;
            write!(out, "{}", if *sends_header { ", PROXY header" } else { "" })?;
            if *check != Check::None {
                write!(out, ", check {}", format!("{check:?}").to_lowercase())?;
            }
        }
        Ok(())
    }
}

impl Display for Arrival {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Self { number, from, name, offers_h2, padded_to, records, segments, early, sends } = self;
        write!(out, "client {number} arrives: {from:?}, name {name:?}")?;
        write!(out, "{}", if *offers_h2 { ", offers h2" } else { "" })?;
        if *padded_to > 0 {
            write!(out, ", padded to {padded_to}")?;
        }
        if let Some(size) = records {
            write!(out, ", in records of {size}")?;
        }
        if let Some(size) = segments {
            write!(out, ", in segments of {size}")?;
        }
        if *early > 0 {
            write!(out, ", {early} bytes of early data")?;
        }
        if *sends == Sends::Hello { Ok(()) } else { write!(out, ", sends {sends:?}") }
    }
}

impl Display for Transfer {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Self { connection, up, down } = self;
        write!(out, "{up} bytes up and {down} down through {connection}")
    }
}

impl Display for Operation {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let of = |endpoint: &Option<usize>| endpoint.map_or(String::new(), |endpoint| format!(" e{endpoint}"));
        match self {
            Self::Reload(config) => write!(out, "reload:{config}"),
            Self::BadReload(with) => write!(out, "reload that is rejected: {with:?}"),
            Self::Drain(kind, endpoint) => write!(out, "drain {}{}", kind.name(), of(endpoint)),
            Self::Resume(kind, endpoint) => write!(out, "resume {}{}", kind.name(), of(endpoint)),
            Self::Close(filter) => write!(out, "close {filter:?}"),
            Self::Upgrade => write!(out, "upgrade"),
            Self::UpgradeTo(config) => write!(out, "upgrade to:{config}"),
            Self::Name(endpoints) => {
                write!(out, "the name has")?;
                endpoints.iter().try_for_each(|endpoint| write!(out, " e{endpoint}"))
            }
            Self::NameServerFails => write!(out, "the name server fails for a while"),
        }
    }
}

impl Display for Step {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arrive(arrival) => write!(out, "{arrival}"),
            Self::Transfer(transfer) => write!(out, "{transfer}"),
            Self::Finish(number, side) => write!(out, "{side:?} of {number} sends FIN"),
            Self::Reset(number, side) => write!(out, "{side:?} of {number} resets"),
            Self::Stall(number) => write!(out, "client {number} reads no more, and its endpoint fills the buffers"),
            Self::Read(number) => write!(out, "client {number} reads again"),
            Self::Behave { endpoint, behaviour, dies } => {
                write!(out, "e{endpoint} {}", format!("{behaviour:?}").to_lowercase())?;
                write!(out, "{}", if *dies { ", and resets its connections" } else { "" })
            }
            Self::Operate(operation) => write!(out, "{operation}"),
            Self::Together { operation, transfers, arrivals } => {
                write!(out, "{operation}\n     while")?;
                transfers.iter().try_for_each(|transfer| write!(out, "\n       {transfer}"))?;
                arrivals.iter().try_for_each(|arrival| write!(out, "\n       {arrival}"))
            }
            Self::Park => write!(out, "until what is silent is parked"),
        }
    }
}
