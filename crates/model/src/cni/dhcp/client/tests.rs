use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const TIMING: Timing = Timing { resend_max: 62 * SECOND, give_up: 208 * SECOND };
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

fn client() -> Client {
    Client::new(MAC, vec![(option::CLIENT_ID, vec![0, 1])], vec![3, 1], false, TIMING, 7)
}

/// What was sent: how, and the message.
fn sent(actions: &[Action]) -> (bool, Message) {
    match actions {
        [Action::Broadcast(bytes)] => (true, Message::decode(bytes).unwrap()),
        [Action::Unicast(SERVER, bytes)] => (false, Message::decode(bytes).unwrap()),
        other => panic!("{other:?}"),
    }
}

fn answer(to: &Message, kind: Kind, more: &[(u8, Vec<u8>)]) -> Message {
    let mut options = vec![
        (option::MESSAGE_TYPE, vec![kind as u8]),
        (option::SERVER, SERVER.octets().to_vec()),
        (option::SUBNET_MASK, vec![255, 255, 255, 0]),
        (option::LEASE_TIME, 1000_u32.to_be_bytes().to_vec()),
    ];
    options.retain(|(code, _)| more.iter().all(|(other, _)| other != code));
    options.extend_from_slice(more);
    Message { op: 2, yiaddr: ADDRESS, options, ..to.clone() }
}

/// A client that got its address at a time.
fn bound(now: Time) -> Client {
    let mut client = client();
    let (_, discover) = sent(&client.start(now));
    let (_, request) = sent(&client.receive(now, &answer(&discover, Kind::Offer, &[])));
    assert_eq!(client.receive(now, &answer(&request, Kind::Ack, &[])), [Action::Bound]);
    client
}

#[test]
fn an_address_is_got() {
    let mut client = client();
    let (everybody, discover) = sent(&client.start(5000));
    assert!(everybody && client.is_listening() && client.lease().is_none());
    assert_eq!(discover.kind(), Some(Kind::Discover));
    assert_eq!(discover.option(option::PARAMETERS), Some(&[3, 1][..]));
    assert_eq!(discover.option(option::CLIENT_ID), Some(&[0, 1][..]));
    let offer = answer(&discover, Kind::Offer, &[]);
    for stranger in [
        Message { xid: 1, ..offer.clone() },
        Message { chaddr: Mac([0; 6]), ..offer.clone() },
        Message { op: 1, ..offer.clone() },
        Message { yiaddr: Ipv4Addr::UNSPECIFIED, ..offer.clone() },
        answer(&discover, Kind::Ack, &[]),
        answer(&discover, Kind::Nak, &[]),
    ] {
        assert_eq!(client.receive(5001, &stranger), []);
    }
    let (everybody, request) = sent(&client.receive(6000, &offer));
    assert!(everybody);
    assert_eq!(request.kind(), Some(Kind::Request));
    assert_eq!(
        (request.address(option::REQUESTED), request.address(option::SERVER)),
        (Some(ADDRESS), Some(SERVER))
    );
    assert_eq!((request.xid, request.secs, request.ciaddr), (discover.xid, 1, Ipv4Addr::UNSPECIFIED));
    // An acknowledgement of another server, or without a mask, is none.
    let other = (option::SERVER, vec![10, 0, 0, 2]);
    assert_eq!(client.receive(6001, &answer(&request, Kind::Ack, &[other])), []);
    assert_eq!(client.receive(6001, &answer(&request, Kind::Ack, &[(option::SUBNET_MASK, vec![])])), []);
    assert_eq!(client.receive(9000, &answer(&request, Kind::Ack, &[])), [Action::Bound]);
    let lease = client.lease().unwrap();
    assert_eq!(lease.address.to_string(), "10.0.0.9/24");
    // Times count from the request.
    let times = (lease.renew_at, lease.rebind_at, lease.expires_at);
    assert_eq!(times, (6000 + 500 * SECOND, 6000 + 850 * SECOND, 6000 + 1000 * SECOND));
    assert_eq!(client.deadline(), Some(lease.renew_at));
}

#[test]
fn times_of_the_server_count_if_they_make_sense() {
    for (t1, t2, want) in [
        (Some(100), Some(200), (100, 200)),
        (Some(300), Some(200), (200, 200)),
        (None, Some(5000), (500, 850)),
        (Some(5000), None, (500, 850)),
    ] {
        let mut client = client();
        let (_, discover) = sent(&client.start(0));
        let (_, request) = sent(&client.receive(0, &answer(&discover, Kind::Offer, &[])));
        let number = |code, value: Option<u32>| value.map(|v| (code, v.to_be_bytes().to_vec()));
        let more: Vec<_> =
            [number(option::RENEWAL, t1), number(option::REBINDING, t2)].into_iter().flatten().collect();
        client.receive(0, &answer(&request, Kind::Ack, &more));
        let lease = client.lease().unwrap();
        assert_eq!((lease.renew_at / SECOND, lease.rebind_at / SECOND), want, "{t1:?} {t2:?}");
    }
}

#[test]
fn silence_is_met_with_patience_and_an_end() {
    let mut client = client();
    client.start(0);
    let mut pauses = Vec::new();
    let mut last = 0;
    let end = loop {
        let now = client.deadline().unwrap();
        assert_eq!(client.tick(now - 1), []);
        pauses.push((now - last) / SECOND);
        last = now;
        match client.tick(now).as_slice() {
            [Action::Broadcast(_)] => {}
            [Action::GaveUp] => break now,
            other => panic!("{other:?}"),
        }
    };
    assert!(pauses[..4].iter().all(|p| (1..=3).contains(p)), "{pauses:?}");
    assert!((3..=5).contains(&pauses[4]) && (7..=9).contains(&pauses[5]), "{pauses:?}");
    assert!(pauses.iter().all(|p| *p <= 63), "{pauses:?}");
    assert!((208 * SECOND..280 * SECOND).contains(&end), "{end}");
    assert_eq!((client.deadline(), client.is_listening()), (None, false));
}

#[test]
fn a_refused_request_begins_again() {
    let mut client = client();
    let (_, discover) = sent(&client.start(0));
    let (_, request) = sent(&client.receive(0, &answer(&discover, Kind::Offer, &[])));
    assert_eq!(client.receive(10, &answer(&request, Kind::Nak, &[])), []);
    let now = client.deadline().unwrap();
    assert!(now > 1000);
    let (_, again) = sent(&client.tick(now));
    assert_eq!(again.kind(), Some(Kind::Discover));
    // A server that offers and then is silent is asked four times.
    let (_, request) = sent(&client.receive(now, &answer(&again, Kind::Offer, &[])));
    let mut kinds = vec![request.kind()];
    for _ in 0..4 {
        let now = client.deadline().unwrap();
        kinds.push(sent(&client.tick(now)).1.kind());
    }
    assert_eq!(kinds, [Kind::Request, Kind::Request, Kind::Request, Kind::Request, Kind::Discover].map(Some));
}

#[test]
fn a_lease_is_renewed_rebound_or_lost() {
    let mut client = bound(0);
    assert!(!client.is_listening());
    let t1 = client.deadline().unwrap();
    let (everybody, request) = sent(&client.tick(t1));
    assert!(!everybody && client.is_listening());
    assert_eq!(
        (request.ciaddr, request.option(option::REQUESTED), request.option(option::SERVER)),
        (ADDRESS, None, None)
    );
    // Half the time to T2, then at least a minute, until T2; then everybody is asked, until the end.
    let mut asked = Vec::new();
    let lost = loop {
        let now = client.deadline().unwrap();
        match client.tick(now).as_slice() {
            [Action::Unicast(..)] => asked.push((now / SECOND, 'u')),
            [Action::Broadcast(_)] => asked.push((now / SECOND, 'b')),
            [Action::Expired] => break now,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(asked, [(675, 'u'), (762, 'u'), (822, 'u'), (850, 'b'), (925, 'b'), (985, 'b')]);
    assert_eq!((lost, client.lease(), client.deadline()), (1000 * SECOND, None, None));

    // An answer at any of these times begins anew.
    for at in [500, 800, 900] {
        let mut client = bound(0);
        while client.deadline().unwrap() < at * SECOND {
            let now = client.deadline().unwrap();
            client.tick(now);
        }
        let now = client.deadline().unwrap();
        let (_, request) = sent(&client.tick(now));
        assert_eq!(client.receive(now + 5, &answer(&request, Kind::Ack, &[])), [Action::Bound]);
        assert_eq!(client.lease().unwrap().expires_at, now + 1000 * SECOND);
        // A refusal ends it at once: the address may not be used any more.
        let now = client.deadline().unwrap();
        let (_, request) = sent(&client.tick(now));
        assert_eq!(client.receive(now, &answer(&request, Kind::Nak, &[])), [Action::Expired]);
        assert_eq!(client.lease(), None);
    }
}

#[test]
fn a_lease_outlives_its_client_and_is_given_back() {
    let lease = bound(0).lease().unwrap().clone();
    let mut other = client();
    other.resume(lease.clone());
    assert_eq!((other.deadline(), other.lease()), (Some(lease.renew_at), Some(&lease)));
    // Woken late: everybody is asked, or it is over.
    assert!(sent(&other.clone().tick(900 * SECOND)).0);
    assert_eq!(other.clone().tick(1001 * SECOND), [Action::Expired]);
    let (everybody, release) = sent(&other.release(3));
    assert!(!everybody);
    assert_eq!((release.kind(), release.ciaddr), (Some(Kind::Release), ADDRESS));
    assert_eq!(
        (release.option(option::PARAMETERS), release.option(option::CLIENT_ID)),
        (None, Some(&[0, 1][..]))
    );
    assert_eq!((other.release(4), other.deadline()), (Vec::new(), None));
}

#[test]
fn the_broadcast_flag_is_for_those_without_address() {
    let mut client = Client::new(MAC, Vec::new(), Vec::new(), true, TIMING, 7);
    let (_, discover) = sent(&client.start(0));
    assert!(discover.broadcast && discover.option(option::PARAMETERS).is_none());
    let (_, request) = sent(&client.receive(0, &answer(&discover, Kind::Offer, &[])));
    assert!(request.broadcast);
    client.receive(0, &answer(&request, Kind::Ack, &[]));
    let now = client.deadline().unwrap();
    assert!(!sent(&client.tick(now)).1.broadcast);
}
