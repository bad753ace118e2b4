//! The client against a server that answers, lies, delays and vanishes, with time moved by hand; and
//! beside a model of what may be used when.

use proptest::prelude::*;

use super::super::lease::tests::ack;
use super::super::wire::code;
use super::*;

const S: Duration = Duration::from_secs(1);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn client() -> Client {
    Client::new(Mac::made_of(1), None, 42, None)
}

fn question(client: &mut Client) -> (Question, Option<(Ipv4Addr, Ipv4Addr)>) {
    match client.poll_action() {
        Some(Action::Send(question, to)) => (question, to),
        other => panic!("no question: {other:?}"),
    }
}

fn answer(kind: ReplyKind, seconds: u32, question: &Question) -> Reply {
    Reply { kind, xid: question.xid, mac: question.mac, ..ack(seconds) }
}

/// Goes through the whole conversation at `now`.
fn bind(client: &mut Client, now: Duration, seconds: u32) -> Lease {
    let (discover, _) = question(client);
    assert!(!discover.is_request);
    client.handle_reply(now, &answer(ReplyKind::Offer, seconds, &discover)).unwrap();
    let (request, to) = question(client);
    assert!(request.is_request && to.is_none());
    assert_eq!(
        (request.wants, request.server),
        (Some([10, 0, 0, 9].into()), Some([10, 0, 0, 1].into()))
    );
    client.handle_reply(now, &answer(ReplyKind::Ack, seconds, &request)).unwrap();
    let Some(Action::Apply(lease)) = client.poll_action() else { panic!("not bound") };
    lease
}

fn bound(seconds: u32) -> Client {
    let mut client = client();
    client.handle_link(secs(0), true);
    bind(&mut client, secs(0), seconds);
    client
}

fn advance(client: &mut Client) -> Duration {
    let now = client.poll_timeout().expect("something to wait for");
    client.handle_timeout(now);
    now
}

#[test]
fn lease_is_renewed_with_its_server_then_with_any_and_then_lost() {
    let mut client = bound(1600);
    assert_eq!(advance(&mut client), secs(800));
    let (renew, to) = question(&mut client);
    assert_eq!(to, Some(([10, 0, 0, 9].into(), [10, 0, 0, 1].into())));
    assert_eq!((renew.has, renew.wants, renew.server), (Some([10, 0, 0, 9].into()), None, None));
    // After half of what is left until 1400, and not less than 60 s.
    for at in [1100, 1250, 1325, 1385] {
        assert_eq!(advance(&mut client), secs(at));
        assert!(question(&mut client).1.is_some());
    }
    assert_eq!(advance(&mut client), secs(1400));
    assert_eq!(question(&mut client).1, None, "to everybody");
    for at in [1500, 1560] {
        assert_eq!(advance(&mut client), secs(at));
        question(&mut client);
    }
    assert_eq!(advance(&mut client), secs(1600));
    assert!(matches!(client.poll_action(), Some(Action::Withdraw(_))));
    // And from the beginning, until there is a server.
    let (discover, _) = question(&mut client);
    assert!(!discover.is_request && client.lease().is_none());
    let mut last = secs(1600);
    for _ in 0..12 {
        let now = advance(&mut client);
        assert!(now - last >= S && now - last <= secs(96), "{:?}", now - last);
        last = now;
        client.poll_action();
    }
    client.handle_wish(last);
    bind(&mut client, last, 1600);
    assert_eq!(client.stage(), Stage::Bound);
}

#[test]
fn ack_of_a_renewal_counts_from_the_question() {
    let mut client = bound(1600);
    let asked = advance(&mut client);
    let (renew, _) = question(&mut client);
    client.handle_reply(asked + secs(30), &answer(ReplyKind::Ack, 1600, &renew)).unwrap();
    assert!(matches!(client.poll_action(), Some(Action::Apply(_))));
    assert_eq!(client.poll_timeout(), Some(asked + secs(800)));
}

#[test]
fn liars_are_not_heard() {
    let mut client = client();
    client.handle_link(secs(0), true);
    let (discover, _) = question(&mut client);
    let offer = answer(ReplyKind::Offer, 3600, &discover);
    let hear = |client: &mut Client, reply: Reply| client.handle_reply(S, &reply).unwrap_err();
    assert_eq!(hear(&mut client, Reply { xid: offer.xid ^ 1, ..offer.clone() }), Ignored::NotOurs);
    assert_eq!(
        hear(&mut client, Reply { mac: Mac::made_of(9), ..offer.clone() }),
        Ignored::NotOurs
    );
    assert_eq!(
        hear(&mut client, Reply { kind: ReplyKind::Ack, ..offer.clone() }),
        Ignored::NotAsked
    );
    assert_eq!(
        hear(&mut client, Reply { kind: ReplyKind::Nak, ..offer.clone() }),
        Ignored::NotAsked
    );
    let multicast = Reply { address: [224, 0, 0, 1].into(), ..offer.clone() };
    assert!(matches!(hear(&mut client, multicast), Ignored::Useless(LeaseError::Address(_))));
    client.handle_reply(S, &offer).unwrap();
    question(&mut client);
    let ack = Reply { kind: ReplyKind::Ack, ..offer.clone() };
    let mut other = ack.clone();
    other.options.insert(code::SERVER, vec![10, 0, 0, 66]);
    assert_eq!(hear(&mut client, other.clone()), Ignored::OtherServer);
    assert_eq!(hear(&mut client, Reply { kind: ReplyKind::Nak, ..other }), Ignored::OtherServer);
    let address = [10, 0, 0, 77].into();
    assert_eq!(hear(&mut client, Reply { address, ..ack.clone() }), Ignored::OtherAddress(address));
    let mut short = ack.clone();
    short.options.insert(code::LEASE_SECONDS, vec![0; 4]);
    assert_eq!(hear(&mut client, short), Ignored::Useless(LeaseError::Short(0)));
    client.handle_reply(S, &ack).unwrap();
    assert_eq!(client.stage(), Stage::Bound);
    assert_eq!(hear(&mut client, ack), Ignored::NotAsked);
}

#[test]
fn server_that_takes_its_offer_back_is_passed_over_once() {
    let mut client = client();
    client.handle_link(secs(0), true);
    let (discover, _) = question(&mut client);
    client.handle_reply(S, &answer(ReplyKind::Offer, 3600, &discover)).unwrap();
    let (request, _) = question(&mut client);
    client.handle_reply(S, &answer(ReplyKind::Nak, 3600, &request)).unwrap();
    assert!(client.poll_action().is_none(), "not at once");
    let now = advance(&mut client);
    let (discover, _) = question(&mut client);
    let offer = answer(ReplyKind::Offer, 3600, &discover);
    assert_eq!(client.handle_reply(now, &offer), Err(Ignored::Shunned));
    let mut other = offer.clone();
    other.options.insert(code::SERVER, vec![10, 0, 0, 2]);
    assert_eq!(client.handle_reply(now, &other), Ok(()));
    assert_eq!(question(&mut client).0.server, Some([10, 0, 0, 2].into()));
}

#[test]
fn only_server_that_takes_its_offer_back_is_heard_the_round_after() {
    let mut client = client();
    client.handle_link(secs(0), true);
    let (discover, _) = question(&mut client);
    client.handle_reply(S, &answer(ReplyKind::Offer, 3600, &discover)).unwrap();
    let (request, _) = question(&mut client);
    client.handle_reply(S, &answer(ReplyKind::Nak, 3600, &request)).unwrap();
    advance(&mut client);
    question(&mut client);
    let now = advance(&mut client);
    bind(&mut client, now, 3600);
}

#[test]
fn refusal_ends_a_lease_at_once() {
    let mut client = bound(1600);
    let now = advance(&mut client);
    let (renew, _) = question(&mut client);
    client.handle_reply(now, &answer(ReplyKind::Nak, 0, &renew)).unwrap();
    assert!(matches!(client.poll_action(), Some(Action::Withdraw(_))));
    bind(&mut client, now, 1600);
}

#[test]
fn link_that_comes_back_is_asked_about_and_silence_is_consent() {
    let mut client = bound(1600);
    client.handle_link(secs(10), false);
    assert_eq!(client.poll_timeout(), Some(secs(1600)), "it ends even so");
    client.handle_link(secs(20), true);
    client.handle_link(secs(20), true);
    let (reboot, to) = question(&mut client);
    assert_eq!(
        (reboot.wants, reboot.has, reboot.server, to),
        (Some([10, 0, 0, 9].into()), None, None, None)
    );
    for _ in 1..DHCP_TRIES {
        advance(&mut client);
        question(&mut client);
    }
    advance(&mut client);
    assert_eq!((client.stage(), client.poll_timeout()), (Stage::Bound, Some(secs(800))));
}

#[test]
fn lease_for_ever_is_never_renewed() {
    assert_eq!(bound(u32::MAX).poll_timeout(), None);
}

#[test]
fn new_agent_goes_on_where_the_one_before_was() {
    let mut first = client();
    first.handle_link(secs(0), true);
    let lease = bind(&mut first, secs(0), 1600);
    let json = serde_json::to_vec(&lease).unwrap();
    let lease: Lease = serde_json::from_slice(&json).unwrap();
    let mut second = Client::resume(Mac::made_of(1), None, 7, lease);
    assert!(second.poll_action().is_none(), "nothing is to be done");
    assert_eq!(second.poll_timeout(), first.poll_timeout());
    // One that comes late finds it over.
    second.handle_timeout(secs(5000));
    assert!(matches!(second.poll_action(), Some(Action::Withdraw(_))));
}

/// What a server may do with a question.
#[derive(Clone, Copy, Debug)]
enum Whim {
    Honest(u32),
    Silent,
    Refuse,
    OtherServer,
    OtherAddress,
    WrongXid,
    /// Answers the question before.
    Late,
}

fn whim() -> impl Strategy<Value = Whim> {
    prop_oneof![
        4 => prop_oneof![5u32..200, Just(u32::MAX), Just(0), any::<u32>()].prop_map(Whim::Honest),
        3 => Just(Whim::Silent), 1 => Just(Whim::Refuse), 1 => Just(Whim::OtherServer),
        1 => Just(Whim::OtherAddress), 1 => Just(Whim::WrongXid), 1 => Just(Whim::Late),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// To the next time that the client wants to be called at, a little later.
    Wait {
        late_ms: u64,
    },
    Answer(Whim),
    Link(bool),
    Wish,
    /// The agent dies and another goes on.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0u64..300).prop_map(|late_ms| Step::Wait { late_ms }),
        6 => whim().prop_map(Step::Answer),
        1 => any::<bool>().prop_map(Step::Link),
        1 => Just(Step::Wish),
        1 => Just(Step::Crash),
    ]
}

/// The model: which address is in use, and until when the last honest word lets it be.
#[derive(Default)]
struct Model {
    in_use: Option<Duration>,
    /// When the last question was sent.
    last: Option<Duration>,
    questions: Vec<Question>,
    /// A wish, an answer or the link has made the next question come early.
    prompted: bool,
}

impl Model {
    fn look(&mut self, client: &mut Client, now: Duration) {
        while let Some(action) = client.poll_action() {
            match action {
                Action::Apply(lease) => {
                    assert!(lease.address.is_host());
                    self.in_use = Some(lease.times.ends.map_or(Duration::MAX, |ends| ends[2]));
                    assert!(self.in_use > Some(now), "applied when it is over");
                }
                Action::Withdraw(_) => {
                    assert!(self.in_use.take().is_some(), "withdrawn twice");
                    self.prompted = true;
                }
                Action::Send(question, _) => {
                    if let Some(last) = self.last.filter(|_| !self.prompted) {
                        assert!(now - last >= S, "asked again after {:?}", now - last);
                    }
                    self.last = Some(now);
                    self.questions.push(question);
                    self.prompted = false;
                }
            }
        }
        assert_eq!(client.lease().is_some(), self.in_use.is_some());
        let waits = client.poll_timeout();
        assert!(waits.is_some() || !client.listens(), "it would listen for ever");
        assert!(
            self.in_use.is_none_or(|end| end == Duration::MAX || waits.is_some_and(|at| at <= end))
        );
    }
}

proptest! {
    #[test]
    fn whatever_servers_do_an_address_is_used_only_while_it_is_ours(steps in proptest::collection::vec(step(), 1..120), seed: u64) {
        let mut client = Client::new(Mac::made_of(1), None, seed, None);
        let (mut now, mut model) = (secs(1000), Model { prompted: true, ..Model::default() });
        client.handle_link(now, true);
        model.look(&mut client, now);
        for step in steps {
            match step {
                Step::Wait { late_ms } => if let Some(at) = client.poll_timeout() {
                    now = now.max(at) + Duration::from_millis(late_ms);
                    client.handle_timeout(now);
                },
                Step::Answer(whim) => {
                    let Some(question) = model.questions.last().cloned() else { continue };
                    let kind = if question.is_request { ReplyKind::Ack } else { ReplyKind::Offer };
                    let mut reply = answer(kind, 60, &question);
                    match whim {
                        Whim::Honest(seconds) => reply = answer(kind, seconds, &question),
                        Whim::Silent => continue,
                        Whim::Refuse => reply.kind = ReplyKind::Nak,
                        Whim::OtherServer => drop(reply.options.insert(code::SERVER, vec![10, 0, 0, 66])),
                        Whim::OtherAddress => reply.address = [10, 0, 0, 99].into(),
                        Whim::WrongXid => reply.xid ^= 0x55,
                        Whim::Late => match model.questions.iter().rev().nth(1) {
                            Some(question) => reply = answer(kind, 60, question),
                            None => continue,
                        },
                    }
                    // An offer, an ack or a refusal that is believed may be followed by a question.
                    model.prompted |= client.handle_reply(now, &reply).is_ok();
                }
                Step::Link(up) => { client.handle_link(now, up); model.prompted = true; }
                Step::Wish => { client.handle_wish(now); model.prompted = true; }
                Step::Crash => {
                    model.prompted = true;
                    client = match client.lease().cloned() {
                        Some(lease) => Client::resume(Mac::made_of(1), None, seed ^ 7, lease),
                        None => {
                            let mut client = Client::new(Mac::made_of(1), None, seed ^ 7, None);
                            client.handle_link(now, true);
                            client
                        }
                    };
                    client.handle_timeout(now);
                }
            }
            model.look(&mut client, now);
            // The time of the lease's end is never slept over.
            if model.in_use.is_some_and(|end| end <= now) {
                client.handle_timeout(now);
                model.look(&mut client, now);
                prop_assert!(model.in_use.is_none());
            }
        }
        // Once one server is honest, there is an address: also when another one is to be given up first.
        client.handle_link(now, true);
        model.prompted = true;
        for _ in 0..64 {
            model.look(&mut client, now);
            if let Some(question) = model.questions.last().cloned() {
                let kind = if question.is_request { ReplyKind::Ack } else { ReplyKind::Offer };
                model.prompted |= client.handle_reply(now, &answer(kind, 60, &question)).is_ok();
                model.look(&mut client, now);
            }
            if client.stage() == Stage::Bound { break }
            if let Some(at) = client.poll_timeout().filter(|_| !model.prompted) {
                now = now.max(at);
                client.handle_timeout(now);
            }
            model.prompted = false;
        }
        prop_assert_eq!(client.stage(), Stage::Bound);
    }
}
