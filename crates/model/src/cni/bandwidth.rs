//! Configuration of the bandwidth plugin, and what it means to the kernel's token bucket (cni.md 2.7).

use super::members::Members;

/// Limits of one direction; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Bits per second.
    pub rate: u64,
    /// Bits.
    pub burst: u64,
}

/// What the plugin is told, as seen from the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress: Limit,
    /// From the pod.
    pub egress: Limit,
}

/// A token bucket in the kernel's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes per second.
    pub rate: u64,
    /// Time to send the burst at that rate, in the scheduler's ticks of 64 ns.
    pub buffer: u32,
    /// Bytes that may wait.
    pub limit: u32,
}

impl Bandwidth {
    /// Reads and checks the document. The runtime's values count only if the configuration names none.
    ///
    /// # Errors
    /// One sentence, upstream's where it has one.
    pub fn parse(doc: &Members<'_>) -> Result<Bandwidth, String> {
        const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];
        let runtime = doc.object("runtimeConfig", "RuntimeConfig")?;
        let runtime = runtime.map(|r| r.object("bandwidth", "BandwidthEntry")).transpose()?.flatten();
        let named = KEYS.iter().any(|key| doc.get(key).is_some());
        let source = if named { Some(doc) } else { runtime.as_ref() };
        let Some(source) = source else { return Ok(Bandwidth::default()) };
        let number = |key: &str| -> Result<u64, String> {
            let value = source.integer(key)?.unwrap_or(0);
            let bad = |_| format!("invalid {key} {value}: bits are counted from 0 up");
            u64::try_from(value).map_err(bad)
        };
        let limit = |rate: &str, burst: &str| Limit::new(number(rate)?, number(burst)?);
        Ok(Bandwidth { ingress: limit(KEYS[0], KEYS[1])?, egress: limit(KEYS[2], KEYS[3])? })
    }

    /// Whether nothing is limited.
    pub fn is_zero(&self) -> bool {
        *self == Bandwidth::default()
    }
}

impl Limit {
    fn new(rate: u64, burst: u64) -> Result<Limit, String> {
        match (rate, burst) {
            (0, 0) => Ok(Limit::default()),
            (0, _) => Err("if burst is set, rate must also be set".to_owned()),
            (_, 0) => Err("if rate is set, burst must also be set".to_owned()),
            _ if burst / 8 >= u64::from(u32::MAX) => Err("burst cannot be more than 4GB".to_owned()),
            _ => Ok(Limit { rate, burst }),
        }
    }

    /// The token bucket; `None` without a limit. A packet may wait 25 ms.
    pub fn bucket(self) -> Option<Bucket> {
        const MICROSECONDS: f64 = 1e6;
        const LATENCY: f64 = 25e-3;
        /// `PSCHED_SHIFT`: a tick is 64 ns, as `/proc/net/psched` says.
        const TICKS: f64 = 1000.0 / 64.0;
        if self.rate == 0 {
            return None;
        }
        // Below eight bits a second the kernel's unit would be none.
        let (rate, burst) = ((self.rate / 8).max(1), (self.burst / 8) as u32);
        let time = (f64::from(burst) * MICROSECONDS / rate as f64) as u32;
        let buffer = (f64::from(time) * TICKS) as u32;
        let limit = ((rate as f64 * LATENCY) as u32).saturating_add(burst);
        Some(Bucket { rate, buffer, limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read() {
        let parse = |doc| Bandwidth::parse(&Members::of(&doc, "PluginConf").unwrap());
        let limit = |rate, burst| Limit { rate, burst };
        let both = json!({"ingressRate": 8, "ingressBurst": 16,
                          "runtimeConfig": {"bandwidth": {"egressRate": 1, "egressBurst": 1}}});
        assert_eq!(parse(both), Ok(Bandwidth { ingress: limit(8, 16), egress: limit(0, 0) }));
        let runtime = json!({"runtimeConfig": {"bandwidth": {"egressRate": 1, "egressBurst": 34359738359}}});
        assert_eq!(parse(runtime).unwrap().egress, limit(1, 34_359_738_359));
        for none in [
            json!({}),
            json!({"runtimeConfig": null}),
            json!({"ingressRate": 0}),
            json!({"shapedSubnets": ["10.0.0.0/8"]}),
        ] {
            assert!(parse(none).unwrap().is_zero());
        }
        for (doc, want) in [
            (json!({"ingressRate": 8}), "if rate is set, burst must also be set"),
            (json!({"egressBurst": 8}), "if burst is set, rate must also be set"),
            (json!({"egressRate": 1, "egressBurst": 34359738360}), "burst cannot be more than 4GB"),
            (json!({"egressRate": -1}), "invalid egressRate -1: bits are counted from 0 up"),
            (
                json!({"egressRate": "8"}),
                "json: cannot unmarshal string into Go struct field PluginConf.egressRate of type int",
            ),
        ] {
            assert_eq!(parse(doc), Err(want.to_owned()));
        }
    }

    #[test]
    fn buckets_are_upstreams() {
        let bucket = |rate, burst| Limit { rate, burst }.bucket();
        assert_eq!(bucket(0, 0), None);
        // 1 Mbit/s with 256 kbit: 0.256 s to send.
        assert_eq!(
            bucket(1_000_000, 256_000),
            Some(Bucket { rate: 125_000, buffer: 4_000_000, limit: 35_125 })
        );
        assert_eq!(bucket(1, 8).map(|b| b.rate), Some(1));
    }
}
