%% SPDX-License-Identifier: Apache-2.0
%% @doc The network as this node sees it. Works as soon as distribution runs; no application needs
%% to be started. From Elixir: `:chatter.nodes()' and so on.
-module(chatter).

-export([nodes/0, neighbours/0, route/1, links/0, info/0, info/1, connect/1, disconnect/1,
         topology/0, monitor_nodes/1, drain/1, peers/0, local_netid/0, get_local_ip/0]).
-export([send/3, call/5, set_class/2]).
-export([broadcast/2, broadcast/3, subscribe/1, subscribe/2, unsubscribe/1, add_handler/1,
         remove_handler/1]).

-export_type([neighbour/0, net_id/0, send_option/0]).

-type neighbour() :: node() | {node(), pos_integer()}
                   | {inet:hostname() | inet:ip_address(), inet:port_number()}.
%% A node by name, with a metric, or by address: as in the configuration key `neighbours'.

-type net_id() :: {net_id, inet:ip_address(), inet:port_number()}.
%% Where a node takes links.

-type send_option() :: chatter_send:option().
%% See `send/3'.

%% drain/1 waits until nothing was passed on for so long, at most for the other, and looks so often.
-define(DRAIN_QUIET_MS, 500).
-define(DRAIN_MS, 10000).
-define(DRAIN_POLL_MS, 20).

%% What a subscription is good for, if nothing is said.
-define(CREDIT, 1000).

%% How long the control plane may take to answer. It takes microseconds.
-define(ANSWER_MS, 5000).

%% @doc Every node that the network can reach now, connected or not; this one is not among them.
-spec nodes() -> [node()].
nodes() ->
    [binary_to_atom(Name) || Name <- chatter_nif:nodes()].

%% @doc The nodes with an established link to this one.
-spec neighbours() -> [node()].
neighbours() ->
    lists:usort([binary_to_atom(Name) || Name <- chatter_nif:neighbours()]).

%% @doc The hops from here to a node, that node last. `[node()]' for this node itself.
-spec route(node()) -> {ok, [node()]} | {error, unreachable}.
route(Node) when Node =:= node() ->
    {ok, [Node]};
route(Node) when is_atom(Node) ->
    case chatter_nif:route(atom_to_binary(Node)) of
        [] -> {error, unreachable};
        Hops -> {ok, [binary_to_atom(Hop) || Hop <- Hops]}
    end.

%% @doc Live figures of every link: peer, remote address, state, RTT and metric, bytes, packets,
%% what is queued, what was dropped. docs/operations.md explains each.
-spec links() -> [map()].
links() ->
    [named(Link) || Link <- ask(fun chatter_nif:links/1, [])].

%% @doc Live figures of this node.
-spec info() -> map().
info() ->
    case ask(fun chatter_nif:info/1, #{}) of
        Map when map_size(Map) > 0 ->
            Map#{broadcast => chatter_broadcast:figures(), messages => chatter_messages:info()};
        Empty -> Empty
    end.

%% @doc What is known of a node: whether it is reachable and how, and figures of the channels to it.
-spec info(node()) -> map().
info(Node) when is_atom(Node) ->
    Route = case route(Node) of
                {ok, Hops} -> Hops;
                {error, unreachable} -> []
            end,
    #{node => Node, reachable => Route =/= [], route => Route,
      connected => lists:member(Node, erlang:nodes(connected)),
      channels => [with_talkers(Channel)
                   || Channel <- chatter_nif:channels(atom_to_binary(Node))]}.

%% The processes that have sent most, by their identifiers.
with_talkers(#{talkers := Talkers} = Channel) ->
    Channel#{talkers := [Talker#{sender := chatter_governor:pid(Sender)}
                         || #{sender := Sender} = Talker <- Talkers]}.

%% @doc Adds a link at run time; it is dialled again whenever it is lost, like one of the
%% configuration.
-spec connect(neighbour()) -> ok | {error, not_started | busy | badarg}.
connect(Neighbour) ->
    with_spec(Neighbour, fun(Spec, Metric) -> chatter_nif:connect(Spec, Metric, true) end).

%% @doc Drops a link, and the wish to have it.
-spec disconnect(neighbour()) -> ok | {error, not_started | busy | badarg}.
disconnect(Neighbour) ->
    with_spec(Neighbour, fun(Spec, _) -> chatter_nif:disconnect(Spec) end).

%% @doc The whole network: nodes, and edges with the metric in the direction in which they are
%% named. A node that has no name yet is shown by its id.
-spec topology() -> #{nodes := [node() | binary()],
                      edges := [{node() | binary(), node() | binary(), pos_integer()}]}.
topology() ->
    {Nodes, Edges} = ask(fun chatter_nif:topology/1, {[], []}),
    Names = maps:from_list([{Id, shown(Id, Name)} || {Id, Name} <- Nodes]),
    #{nodes => lists:sort(maps:values(Names)),
      edges => lists:sort([{maps:get(A, Names, A), maps:get(B, Names, B), Metric}
                           || {A, B, Metric} <- Edges])}.

%% @doc Has the calling process told of every node that the network can reach from now on, and
%% every one that it cannot any more: `{chatter, node_up | node_down, Node}', whether or not there
%% is a connection. `nodes/0' after this call has those that are up already. A node that was
%% restarted is down and then up.
%%
%% Several calls are as one. `false' ends it, as does the death of the process or the end of
%% distribution, before which all nodes are told to be down.
-spec monitor_nodes(boolean()) -> ok | {error, not_started}.
monitor_nodes(On) when is_boolean(On) ->
    chatter_node:monitor_nodes(On).

%% @doc `true': has the other nodes send around this one what is not for it, and returns when
%% nothing was passed on for half a second; then this node can be stopped and nobody else notices.
%% It goes on with its own connections, and with what is still sent through it. `{error, transit}'
%% after 10 s: others have no way but this one and still use it; the request stays, and `info/0'
%% has the figures (`draining', `transit_idle_ms'). `false' takes it back. A restart forgets it.
-spec drain(boolean()) -> ok | {error, transit | not_started | busy}.
drain(true) ->
    case chatter_nif:drain(true) of
        ok -> await_quiet(erlang:monotonic_time(millisecond), ?DRAIN_MS);
        {error, _} = Error -> Error
    end;
drain(false) ->
    chatter_nif:drain(false).

%% @doc Sends a message to a process anywhere in the network, by its identifier or as
%% `{Name, Node}'. No distribution connection is needed or made: neither node appears in the
%% other's `nodes/0'.
%%
%% As with `!', what one process sends to another arrives in order, and a receiver that does not
%% exist is no error. `ok' says that the message is on its way. It is lost if the other node goes
%% down before it has arrived, and never reaches a later life of it. `{error, unreachable}': there
%% is no way to the node, or it takes no messages. `{error, full}': it takes them more slowly
%% than they are sent, and made no room while this process waited (at most `message_wait_ms', also
%% for the channel to be opened). `{error, too_large}': over `max_message' in external format.
%%
%% `unreliable': the sender does not wait for room, and a message that is lost on the way is not
%% sent again. `unordered': it is handed over when it comes. `{deadline, Ms}': after so long nobody
%% wants it: the sender waits no longer than that, and a message that is found to be late, here, at
%% a relay or at the other end, is dropped and counted. These three hold for messages below 16 KiB;
%% larger ones are reliable and in order, and their deadline counts at both ends only. `{priority,
%% Class}': `high' goes before all others at each hop, `low' after them; each is sure of an eighth.
%% Another option is an error `badarg'.
-spec send(pid() | {Name :: atom(), node()}, Message :: term(), [send_option()]) ->
          ok | {error, unreachable | full | too_large}.
send(Dest, Message, Opts) ->
    chatter_send:send(Dest, Message, Opts).

%% @doc The value of `apply(M, F, A)' on a node anywhere in the network, without a distribution
%% connection. What can go wrong is told as by `erpc:call/5': exceptions of the same classes
%% and reasons. `error:{erpc, noconnection}': there is no way to the node, or it, or a channel to
%% or from it, ended before the result came; the function may have been called.
%% `error:{erpc, system_limit}': the arguments or the result are over `max_message', or the node
%% serves `max_calls' others.
%%
%% The function runs in a process of its own. Unlike that of `erpc' it prints at the node where
%% it runs. On this node the call is `erpc:call/5'.
-spec call(node(), module(), atom(), [term()], timeout() | {abs, integer()}) -> term().
call(Node, Module, Function, Args, Timeout) ->
    chatter_call:call(Node, Module, Function, Args, Timeout).

%% @doc Gives the options of `send/3' to all that a process of this node sends to other nodes with
%% `!' over connections, until the next call or its death; `[]' takes them back. The priority holds
%% for everything that it sends, signals and large messages included. The other options hold for
%% what may be late or lost without harm to the connection: messages below 16 KiB whose atoms the
%% other VM knows by now. `{error, full}': 65,536 processes have options. With `flows' 1 they do
%% nothing.
-spec set_class(pid(), [send_option()]) -> ok | {error, not_started | full}.
set_class(Pid, Opts) ->
    chatter_class:set(Pid, Opts).
%% @doc Sends a message, a tuple of at least two elements of which the first is an atom, its
%% type, to many nodes: `all' (every other node that can be reached), a list of nodes or NetIDs
%% (this node may be among them), or `{group, Name}'.
%%
%% Every target that stays reachable gets it exactly once, and all messages of this node in the
%% order in which they were sent; who gets it there: see `subscribe/1' and `add_handler/1'. `ok'
%% says that it is on its way. Nodes of a list that nobody knows are left out and counted
%% (`unreachable' in `info/0'). While `broadcast_window' bytes are on their way, the caller waits.
-spec broadcast(chatter_broadcast:targets(), tuple()) ->
          ok | {error, not_started | too_large | no_group}.
broadcast(Targets, Msg) ->
    chatter_broadcast:send(Targets, Msg, #{}).

%% @doc The same; option `{timeout, Ms}': how long to wait for room, then `{error, timeout}'.
-spec broadcast(chatter_broadcast:targets(), tuple(),
                #{timeout => timeout()} | [{timeout, timeout()}]) ->
          ok | {error, not_started | too_large | no_group | timeout}.
broadcast(Targets, Msg, Opts) ->
    chatter_broadcast:send(Targets, Msg, Opts).

%% @doc `subscribe(Type, 1000)'.
-spec subscribe(atom()) -> ok.
subscribe(Type) ->
    subscribe(Type, ?CREDIT).

%% @doc The calling process gets the next `N' broadcasts of a type as `{chatter_broadcast, From,
%% Msg}' and after the last one `{chatter_broadcast_passive, Type}', as a socket with `{active,
%% N}'. Calling it again adds to what is left. What comes while nothing is left is dropped for
%% this process and counted (`subscriber_drops'). `From' is the node that sent it, or an id as a
%% binary if that has no name. Ends with the process.
%%
%% `chatter_lost' is no type of broadcasts: with `on_loss' `notify' its subscribers get
%% `{chatter_lost, Node, Flow, Count}' when `Count' messages of that node to this one are lost for
%% good. `Flow' is `{Id, Serial}' of the process that sent them, as its pid shows them there, or
%% `other': see docs/operations.md.
-spec subscribe(atom(), pos_integer()) -> ok.
subscribe(Type, N) ->
    chatter_broadcast:subscribe(Type, N).

%% @doc Takes the subscription of the calling process back.
-spec unsubscribe(atom()) -> ok.
unsubscribe(Type) ->
    chatter_broadcast:unsubscribe(Type).

%% @doc Says what is done with messages of a type on this node. All keys but `type' may be missing:
%%
%% `extract_netids' lists NetIDs in a message, which then travel once, in a table; `encode_with'
%% makes the bytes, with the places of NetIDs in that table; `decode_with' is its reverse, and
%% gives the message and what is left; without them the message travels in the external term
%% format, and is decoded with `[safe]'. `dispatch' is called with each message that arrives. If
%% it returns `{ok, Changed}', a message of the same type of up to 16 KiB, then that travels on
%% to the nodes behind this one; these wait for it, but at most 2 s. Handlers run in one
%% process: they should be quick. One that fails is logged and harms nobody.
-spec add_handler(chatter_broadcast:handler()) -> ok | {error, badarg}.
add_handler(Handler) ->
    chatter_broadcast:add_handler(Handler).

%% @doc Takes the handler of a type back.
-spec remove_handler(atom()) -> ok.
remove_handler(Type) ->
    chatter_broadcast:remove_handler(Type).

%% @doc The other nodes that are known: those that the network can reach, and those found by
%% multicast. Nodes that accept no links have no NetID and are left out.
-spec peers() -> [net_id()].
peers() ->
    {_, Others} = ask(fun chatter_nif:net_ids/1, {[], []}),
    lists:usort([Id || {_Name, Addresses} <- Others, {ok, Id} <- [net_id(Addresses)]]).

%% @doc This node as the others know it: the first of the addresses that it tells them, an IPv4
%% address if there is one, and its port. `{net_id, {127,0,0,1}, 0}' if it accepts no links.
-spec local_netid() -> net_id().
local_netid() ->
    {Own, _} = ask(fun chatter_nif:net_ids/1, {[], []}),
    case net_id(Own) of
        {ok, Id} -> Id;
        none -> {net_id, {127, 0, 0, 1}, 0}
    end.

%% @doc The address of this node, see `local_netid/0'.
-spec get_local_ip() -> inet:ip_address().
get_local_ip() ->
    {net_id, Ip, _} = local_netid(),
    Ip.

%% Loopback only if there is nothing else: it is the same for everybody.
net_id(Addresses) ->
    Ids = [{net_id, ip(Bytes), Port} || {Bytes, Port} <- Addresses],
    V4 = [Id || {net_id, {_, _, _, _}, _} = Id <- Ids],
    case [Id || {net_id, Ip, _} = Id <- V4 ++ Ids, element(1, Ip) =/= 127] ++ Ids of
        [Id | _] -> {ok, Id};
        [] -> none
    end.

ip(<<A, B, C, D>>) -> {A, B, C, D};
ip(<<Ip:16/binary, _/binary>>) -> list_to_tuple([Word || <<Word:16>> <= Ip]).

await_quiet(Begin, Limit) ->
    Passed = erlang:monotonic_time(millisecond) - Begin,
    case chatter_nif:transit() of
        {Idle, 0} when Idle >= ?DRAIN_QUIET_MS, Passed >= ?DRAIN_QUIET_MS -> ok;
        _ when Passed >= Limit -> {error, transit};
        _ ->
            receive after ?DRAIN_POLL_MS -> ok end,
            await_quiet(Begin, Limit)
    end.

shown(Id, <<>>) -> Id;
shown(_Id, Name) -> binary_to_atom(Name).

named(#{peer := <<>>, peer_id := Id} = Link) -> Link#{peer := Id};
named(#{peer := Name} = Link) -> Link#{peer := binary_to_atom(Name)}.

ask(Question, Default) ->
    Ref = make_ref(),
    case Question(Ref) of
        true -> receive {Ref, Answer} -> Answer after ?ANSWER_MS -> Default end;
        false -> Default
    end.

with_spec({Node, Metric}, Do) when is_atom(Node), is_integer(Metric), Metric > 0, Metric =< 65535 ->
    case is_name(Node) of
        true -> Do({name, atom_to_binary(Node)}, Metric);
        false -> with_address(atom_to_list(Node), Metric, Do)
    end;
with_spec({Host, Port}, Do) ->
    with_address(Host, Port, Do);
with_spec(Node, Do) when is_atom(Node) ->
    case is_name(Node) of
        true -> Do({name, atom_to_binary(Node)}, 0);
        false -> {error, badarg}
    end;
with_spec(_, _) ->
    {error, badarg}.

with_address(Host, Port, Do) when is_integer(Port), Port > 0, Port < 65536 ->
    case is_tuple(Host) andalso inet:ntoa(Host) of
        false ->
            try unicode:characters_to_binary(Host) of
                Text when is_binary(Text), Text =/= <<>> -> Do({address, Text, Port}, 0);
                _ -> {error, badarg}
            catch error:badarg -> {error, badarg}
            end;
        {error, einval} -> {error, badarg};
        Text -> Do({address, list_to_binary(Text), Port}, 0)
    end;
with_address(_, _, _) ->
    {error, badarg}.

is_name(Node) ->
    lists:member($@, atom_to_list(Node)).
