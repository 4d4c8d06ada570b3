//! The whole journey of a packet, there and back: which node is asked what, and the table that comes of it.

use std::net::IpAddr;

use mesh_proto::api;
use mesh_proto::trace::{Packet, Place, Protocol, Stage, TraceEnd, TraceHop, TraceReply, TraceRequest};
use mesh_proto::{NetworkName, NodeId};

use super::answer_to;

/// Nodes asked for one journey: naming the destination, two nodes each way, and room for a way back by others.
const MAX_QUESTIONS: usize = 8;

/// What the operator wants to know.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The network, if told.
    pub network: Option<NetworkName>,
    /// Where the sender is; `None`: here.
    pub from_node: Option<NodeId>,
    /// A VM's address as the VM has it.
    pub from: IpAddr,
    /// Where given, `to` is an address as a VM of that node has it.
    pub to_node: Option<NodeId>,
    /// Where to.
    pub to: IpAddr,
    /// What the packet carries.
    pub protocol: Protocol,
    /// Follow the answer as well.
    pub back: bool,
}

/// To be asked next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Whom.
    pub node: NodeId,
    /// What; its `id` is set by who asks.
    pub request: TraceRequest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Return,
}

#[derive(Debug)]
enum State {
    UnderWay(Question),
    Arrived,
    Refused(String),
    Unknown(String),
    /// The operator's question was wrong.
    Wrong(String),
}

/// A journey under way.
#[derive(Debug)]
pub struct Journey {
    wish: Wish,
    start: NodeId,
    /// The first packet as its sender sends it.
    sent: Packet,
    network: Option<NetworkName>,
    direction: Direction,
    asked: usize,
    hops: Vec<(NodeId, Direction, TraceHop)>,
    state: State,
}

impl Journey {
    /// `own` is this node.
    pub fn new(wish: Wish, own: NodeId) -> Self {
        let start = wish.from_node.clone().unwrap_or(own);
        let packet =
            Packet { source: wish.from, destination: wish.to, protocol: wish.protocol, reply: false };
        let (node, stage) = match &wish.to_node {
            Some(node) => (node.clone(), Stage::Name),
            None => (start.clone(), Stage::Segment),
        };
        let request = TraceRequest { id: 0, network: wish.network.clone(), stage, packet };
        Self {
            network: wish.network.clone(),
            wish,
            start,
            sent: packet,
            direction: Direction::Forward,
            asked: 0,
            hops: Vec::new(),
            state: State::UnderWay(Question { node, request }),
        }
    }

    /// Whom to ask what; `None`: the journey is over.
    pub fn question(&self) -> Option<&Question> {
        match &self.state {
            State::UnderWay(question) => Some(question),
            _ => None,
        }
    }

    /// The answer to the question, or why there is none.
    pub fn handle_answer(&mut self, answer: Result<TraceReply, String>) {
        let State::UnderWay(question) = &self.state else { return };
        let question = question.clone();
        let reply = match answer {
            Ok(reply) => reply,
            Err(text) => {
                self.state = if self.hops.is_empty() { State::Wrong(text) } else { State::Unknown(text) };
                return;
            }
        };
        self.asked += 1;
        let asked = question.request.packet;
        let last = reply.hops.last().map_or((asked.source, asked.destination), |h| (h.source, h.destination));
        let packet = Packet { source: last.0, destination: last.1, ..asked };
        let direction = self.direction;
        self.hops.extend(reply.hops.into_iter().map(|hop| (question.node.clone(), direction, hop)));
        self.network = reply.network.or(self.network.take());
        self.state = match reply.end {
            TraceEnd::Address(address) => {
                self.sent = Packet { destination: address, ..asked };
                self.ask(self.start.clone(), Stage::Segment, self.sent)
            }
            TraceEnd::Tunnel(node) => self.ask(node, Stage::Tunnel(question.node), packet),
            TraceEnd::Arrived if direction == Direction::Return => self.is_home(&question.node, packet),
            TraceEnd::Arrived if self.wish.back => self.turn(question.node, Stage::Segment, packet),
            TraceEnd::Outside(inside) if self.wish.back && direction == Direction::Forward => {
                self.turn(question.node, Stage::Uplink(inside), packet)
            }
            TraceEnd::Outside(_) if direction == Direction::Return => State::Refused(format!(
                "the way back leaves the mesh at {}, and does not reach the sender",
                question.node
            )),
            TraceEnd::Arrived | TraceEnd::Outside(_) => State::Arrived,
            TraceEnd::Refused(text) => State::Refused(text),
            TraceEnd::Unanswerable(text) if self.hops.is_empty() => State::Wrong(text),
            TraceEnd::Unanswerable(text) => State::Unknown(text),
        };
    }

    /// The table; `Err` where the question was wrong.
    pub fn into_trace(self) -> Result<api::Trace, String> {
        let way = if self.direction == Direction::Return { "on the way back: " } else { "" };
        let (state, reason) = match self.state {
            State::Arrived => ("arrives", None),
            State::Refused(text) => ("refused", Some(format!("{way}{text}"))),
            State::Unknown(text) => ("unknown", Some(format!("{way}{text}"))),
            State::UnderWay(question) => ("unknown", Some(format!("{way}{} was not asked", question.node))),
            State::Wrong(text) => return Err(text),
        };
        let hops = self.hops.into_iter().enumerate().map(|(i, (node, direction, hop))| api::Hop {
            hop: i + 1,
            host: match hop.place {
                Place::Vm => "vm".into(),
                Place::Host => node.to_string(),
                Place::Internet => "internet".into(),
            },
            source: hop.source,
            destination: hop.destination,
            action: hop.action,
            node: node.to_string(),
            device: hop.device,
            direction: if direction == Direction::Forward { "forward" } else { "return" }.into(),
            state: if hop.refused { "refused" } else { "passes" }.into(),
        });
        Ok(api::Trace {
            schema: api::SCHEMA,
            state: state.into(),
            reason,
            hops: hops.collect(),
            network: self.network.map(|n| n.to_string()),
        })
    }

    fn ask(&self, node: NodeId, stage: Stage, packet: Packet) -> State {
        if self.asked >= MAX_QUESTIONS {
            return State::Unknown(format!("given up after {MAX_QUESTIONS} nodes: their answers go round"));
        }
        let request = TraceRequest { id: 0, network: self.network.clone(), stage, packet };
        State::UnderWay(Question { node, request })
    }

    fn turn(&mut self, node: NodeId, stage: Stage, packet: Packet) -> State {
        self.direction = Direction::Return;
        self.ask(node, stage, answer_to(&packet))
    }

    /// An answer that arrives elsewhere, or changed, is none to who asked.
    fn is_home(&self, node: &NodeId, packet: Packet) -> State {
        if *node == self.start && answer_to(&self.sent) == packet {
            return State::Arrived;
        }
        State::Refused(format!(
            "the answer arrives at {node} from {} to {}: the sender does not take it for one",
            packet.source, packet.destination
        ))
    }
}
