//! The frame, byte by byte (little-endian hosts only, as the expectations are written out).

use std::net::IpAddr;

use model::Mac;

use super::*;

#[cfg(target_endian = "little")] // the bytes are those of such a machine
#[test]
fn a_message_has_header_padding_and_nesting() {
    let mut m = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE);
    m.bytes(&[7]).attr_u8(1, 9).attr_text(2, "lo").nest(3, |m| {
        m.attr_be16(4, 0x0102).attr_flag(5);
    });
    let mut out = Vec::new();
    m.write(0x0a0b, libc::NLM_F_ACK, &mut out);
    #[rustfmt::skip]
    let want: &[u8] = &[
        52, 0, 0, 0,  16, 0,  0x05, 0x04,  0x0b, 0x0a, 0, 0,  0, 0, 0, 0,
        7, 0, 0, 0,
        5, 0, 1, 0,  9, 0, 0, 0,
        7, 0, 2, 0,  b'l', b'o', 0, 0,
        16, 0, 3, 0x80,
            6, 0, 4, 0,  1, 2, 0, 0,
            4, 0, 5, 0,
    ];
    assert_eq!(out, want);
    let reply = Reply::split(&out).next().unwrap();
    assert_eq!((reply.kind, reply.sequence), (libc::RTM_NEWLINK, 0x0a0b));
    let attrs = reply.attrs(1);
    assert_eq!(attrs.find(1).unwrap().u8(), Some(9));
    assert_eq!(attrs.find(2).unwrap().text(), Some("lo"));
    assert_eq!(attrs.find(3).unwrap().nested().find(4).unwrap().be16(), Some(0x0102));
    assert_eq!(attrs.find(3).unwrap().nested().count(), 2);
}

#[test]
fn malformed_replies_end_the_iteration() {
    for bytes in [
        &[][..],
        &[1, 2, 3],
        &[0; 16],                                                  // length 0
        &[255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], // longer than the data
        &[15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],        // shorter than its header
    ] {
        assert_eq!(Reply::split(bytes).count(), 0, "{bytes:?}");
    }
    for bytes in [&[][..], &[3, 0, 1, 0], &[0, 0, 1, 0], &[9, 0, 1, 0, 1, 2], &[4, 0, 1]] {
        assert_eq!(Attrs::new(bytes).count(), 0, "{bytes:?}");
    }
    assert_eq!(Attr { kind: 0, data: &[1, 2, 3] }.u32(), None);
    assert_eq!(Attr { kind: 0, data: &[1, 2, 3] }.ip(), None);
}

#[test]
fn errors_carry_text_and_offset() {
    let mut error = Message::new(libc::NLMSG_ERROR as u16, 0);
    error.bytes(&(-libc::ENODEV).to_ne_bytes()).bytes(&[0; HEADER]);
    error.attr_text(1, "Unknown device").attr_u32(2, 24);
    let reply = |flags: i32| Reply {
        kind: libc::NLMSG_ERROR as u16,
        flags: flags as u16,
        sequence: 1,
        payload: error.payload(),
    };
    let errno = socket::outcome(&reply(libc::NLM_F_ACK_TLVS | libc::NLM_F_CAPPED)).unwrap_err();
    assert_eq!((errno.code, errno.text.as_deref(), errno.offset), (19, Some("Unknown device"), Some(24)));
    assert_eq!(socket::outcome(&reply(0)).unwrap_err().text, None);

    let mut done = Message::new(libc::NLMSG_DONE as u16, 0);
    done.bytes(&(-libc::EINVAL).to_ne_bytes()).attr_text(1, "Invalid header");
    let reply = Reply {
        kind: libc::NLMSG_DONE as u16,
        flags: libc::NLM_F_ACK_TLVS as u16,
        sequence: 1,
        payload: done.payload(),
    };
    assert_eq!(socket::outcome(&reply).unwrap_err().text.as_deref(), Some("Invalid header"));
}

/// Short ones are kept in place, longer ones elsewhere: what is in them is the same.
#[test]
fn messages_of_any_length_hold_what_was_put_in() {
    for length in 0..120 {
        let text: Vec<u8> = (0..length).collect();
        let mut m = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE);
        m.header([1, 2, 3]).attr_u8(1, 9).attr(2, &text).nest(3, |m| {
            m.attr_ip(4, IpAddr::from([0x20; 16])).attr_be16(5, 0x0102);
        });
        m.attr_mac(6, Mac([1, 2, 3, 4, 5, 6])).set_flags(libc::NLM_F_REPLACE);
        let mut out = vec![1, 2, 3, 4];
        m.write(7, 0, &mut out);
        let frame = &out[4..];
        assert_eq!((frame.len(), m.wire_length()), (align(usize::from(length)) + 76, frame.len()));
        let [reply] = Reply::split(frame).collect::<Vec<_>>()[..] else { panic!("{length}: one message") };
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        assert_eq!((reply.kind, i32::from(reply.flags), reply.sequence), (libc::RTM_NEWLINK, flags, 7));
        assert_eq!((reply.payload, m.kind()), (m.payload(), libc::RTM_NEWLINK));
        assert_eq!(reply.field(0), Some([1, 2, 3, 0]));
        let attrs = reply.attrs(3);
        assert_eq!(attrs.map(|a| a.kind).collect::<Vec<_>>(), [1, 2, 3, 6]);
        assert_eq!((attrs.find(1).unwrap().u8(), attrs.find(2).unwrap().data), (Some(9), &text[..]));
        let inner = attrs.find(3).unwrap().nested();
        assert_eq!(inner.find(4).unwrap().ip(), Some(IpAddr::from([0x20; 16])));
        assert_eq!(inner.find(5).unwrap().be16(), Some(0x0102));
        assert_eq!(attrs.find(6).unwrap().mac(), Some(Mac([1, 2, 3, 4, 5, 6])));
    }
}
