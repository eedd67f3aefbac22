%% SPDX-License-Identifier: Apache-2.0
%% @doc The native node: typed stubs of every function of the library `chatter_nif'.
%%
%% There is no `-on_load': in a release, distribution starts before such handlers run. `load/0' is
%% called explicitly by whoever comes first, any number of times.
%%
%% Never purge this module while a node runs: the library's threads would run in unmapped memory. A
%% hot upgrade of this module is not supported; it is kept small so that none is needed.
-module(chatter_nif).

-export([load/0]).
-export([address/1, addresses/1, broadcast_decode/3, broadcast_dispatched/3, broadcast_encoded/1,
         broadcast_fetch/0, broadcast_fetch_large/0, broadcast_figures/0, broadcast_handled/1,
         broadcast_owner/1, broadcast_send/3, broadcast_send_large/3, broadcast_small/2,
         channels/1, close/1, close_idle/1, connect/3, controller/2, dial/3, disconnect/1,
         drain/1, fetch/2, found/0, found_at/1, governor/2, grant/2, handshake/2, info/1,
         input/1, is_reachable/1, links/1, manners/0, neighbours/0, net_ids/1, node_start/1,
         node_stop/1, nodes/0, open/2, post/3, pulse/0, room/2, route/1, send/2, set_acceptor/1,
         set_log_level/1, set_manner/2, set_message_acceptor/0, set_name/1, set_owner/0, stat/1,
         take/1, topology/1, transit/0, unset_manner/1]).

-nifs([address/1, addresses/1, broadcast_decode/3, broadcast_dispatched/3, broadcast_encoded/1,
       broadcast_fetch/0, broadcast_fetch_large/0, broadcast_figures/0, broadcast_handled/1,
       broadcast_owner/1, broadcast_send/3, broadcast_send_large/3, broadcast_small/2,
       channels/1, close/1, close_idle/1, connect/3, controller/2, dial/3, disconnect/1, drain/1,
       fetch/2, found/0, found_at/1, governor/2, grant/2, handshake/2, info/1, input/1,
       is_reachable/1, links/1, manners/0, neighbours/0, net_ids/1, node_start/1, node_stop/1,
       nodes/0, open/2, post/3, pulse/0, room/2, route/1, send/2, set_acceptor/1,
       set_log_level/1, set_manner/2, set_message_acceptor/0, set_name/1, set_owner/0, stat/1,
       take/1, topology/1, transit/0, unset_manner/1]).

-export_type([channel/0, cost/0, fetched/0, flow/0, frames/0, post_options/0, spec/0]).

-type channel() :: reference().
%% A channel in the hands of Erlang. It ends with the processes that hold it.

-type cost() :: non_neg_integer().
%% Credit that frames use up, in bytes; to be granted back once the VM has taken them.

-type flow() :: non_neg_integer().
%% What stays in order; 64 bits.

-type fetched() :: {Origin :: binary(), Type :: binary(), Body :: binary(),
                    none | {Ticket :: non_neg_integer(), Seq :: non_neg_integer()}} |
                   {Origin :: binary(), Type :: binary(), Run :: binary(), Count :: pos_integer()}.
%% A broadcast, or many.

-type post_options() :: {flow(), high | normal | low, Reliable :: boolean(), Ordered :: boolean(),
                         LeftMs :: non_neg_integer()}.
%% How a frame is to be carried; 0 is no deadline.

-type frames() :: [[binary()]].
%% Frames of the VM, each as `dist_ctrl_get_data/1' gives it, the newest first.

-type spec() :: {name, unicode:chardata()} | {address, unicode:chardata(), inet:port_number()}.
%% A neighbour.

-define(NOT_LOADED, erlang:nif_error({nif_not_loaded, ?MODULE})).

%% @doc Loads the library. Does nothing if it is loaded; the error is one line.
-spec load() -> ok | {error, string()}.
load() ->
    Path = filename:join(priv_dir(), "libchatter_nif"),
    case erlang:load_nif(Path, 0) of
        ok -> ok;
        {error, {reload, _}} -> ok;
        {error, {Reason, Text}} ->
            {error, lists:flatten(io_lib:format(
                "the native library cannot be loaded (~s): ~s. Build it with 'make' or "
                "'rebar3 compile'", [Reason, one_line(Text)]))}
    end.

priv_dir() ->
    case code:priv_dir(chatter) of
        {error, bad_name} ->
            filename:join(filename:dirname(filename:dirname(code:which(?MODULE))), "priv");
        Dir -> Dir
    end.

one_line(Text) ->
    lists:map(fun($\n) -> $\s; (C) -> C end, lists:flatten(Text)).

%% @doc The address (4 or 16 bytes) and port at the other end of the link that leads to a node.
-spec address(binary()) -> {binary(), inet:port_number()} | none.
address(_Name) -> ?NOT_LOADED.

%% @doc Asks where nodes say that they can be dialled: `{Ref, [{Name, [{Ip, Port}]}]}' comes as a
%% message if the result is `true'.
-spec addresses(reference()) -> boolean().
addresses(_Ref) -> ?NOT_LOADED.

%% @doc Messages of a type from a place in a run of `broadcast_fetch/0' on, how many were none of
%% that type, and the place to go on from. If that is the same place, the message there is to be
%% decoded by the caller.
-spec broadcast_decode(atom(), binary(), non_neg_integer()) ->
          {[tuple()], non_neg_integer(), non_neg_integer()}.
broadcast_decode(_Type, _Run, _At) -> ?NOT_LOADED.

%% @doc What travels on in place of a message that came with a ticket.
-spec broadcast_dispatched(non_neg_integer(), non_neg_integer(), unchanged | binary()) -> ok.
broadcast_dispatched(_Ticket, _Seq, _Body) -> ?NOT_LOADED.

%% @doc Messages of these types are `unsuited' for `broadcast_small/2'.
-spec broadcast_encoded([atom()]) -> ok.
broadcast_encoded(_Types) -> ?NOT_LOADED.

%% @doc The next broadcasts: origin, type, body, and the ticket if others wait for what becomes of
%% it here; or instead of body and ticket many messages as they stand in packets, and how many they
%% are. After `idle' the owner gets `{chatter_broadcasts}' when there are more; after `soon' it does
%% not, and fetches again in about a millisecond; after `large' the next one is to be fetched with
%% `broadcast_fetch_large/0'.
-spec broadcast_fetch() -> {[fetched()], more | large | soon | idle}.
broadcast_fetch() -> ?NOT_LOADED.

%% @doc The same on a dirty scheduler; never `large'.
-spec broadcast_fetch_large() -> {[fetched()], more | large | soon | idle}.
broadcast_fetch_large() -> ?NOT_LOADED.

%% @doc Counts of broadcasts.
-spec broadcast_figures() -> [{atom(), non_neg_integer()}].
broadcast_figures() -> ?NOT_LOADED.

%% @doc Messages of these types wait for `broadcast_dispatched/3' before they go on.
-spec broadcast_handled([binary()]) -> ok.
broadcast_handled(_Types) -> ?NOT_LOADED.

%% @doc The process that fetches broadcasts.
-spec broadcast_owner(pid()) -> ok.
broadcast_owner(_Pid) -> ?NOT_LOADED.

%% @doc Sends a message of a type to nodes by name; `full': again a little later.
-spec broadcast_send(all | [binary()], binary(), binary()) ->
          ok | full | {error, not_started | too_large}.
broadcast_send(_Targets, _Type, _Body) -> ?NOT_LOADED.

%% @doc The same on a dirty scheduler, for messages over 64 KiB.
-spec broadcast_send_large(all | [binary()], binary(), binary()) ->
          ok | full | {error, not_started | too_large}.
broadcast_send_large(_Targets, _Type, _Body) -> ?NOT_LOADED.

%% @doc Sends a small message in one call; `unsuited' if it has to be sent by `broadcast_send/3'.
-spec broadcast_small(all | [term()], tuple()) -> ok | full | unsuited.
broadcast_small(_Targets, _Msg) -> ?NOT_LOADED.

%% @doc Figures of the channels to a node.
-spec channels(binary()) -> [map()].
channels(_Name) -> ?NOT_LOADED.

%% @doc Closes a channel from this end.
-spec close(channel()) -> ok.
close(_Channel) -> ?NOT_LOADED.

%% @doc Closes a channel from this end if the other end has acknowledged all that was handed in;
%% whether it is over.
-spec close_idle(channel()) -> boolean().
close_idle(_Channel) -> ?NOT_LOADED.

%% @doc Asks for a link. Metric 0 means by round trip time.
-spec connect(spec(), non_neg_integer(), boolean()) -> ok | {error, not_started | busy}.
connect(_Spec, _Metric, _Persistent) -> ?NOT_LOADED.

%% @doc Names the process that fetches from the VM; the channel ends with it. It gets
%% `chatter_writable' when a channel that was full takes frames again.
-spec controller(channel(), pid()) -> ok.
controller(_Channel, _Pid) -> ?NOT_LOADED.

%% @doc The addresses (4 or 16 bytes each, or 16 and 4 of a scope) that a neighbour was resolved to;
%% none: it could not be.
-spec dial(non_neg_integer(), non_neg_integer(), [{binary(), inet:port_number()}]) -> ok.
dial(_Neighbour, _Seq, _Addresses) -> ?NOT_LOADED.

%% @doc Forgets a neighbour and closes its link.
-spec disconnect(spec()) -> ok | {error, not_started | busy}.
disconnect(_Spec) -> ?NOT_LOADED.

%% @doc Asks the other nodes not to relay through this one, or to do so again.
-spec drain(boolean()) -> ok | {error, not_started | busy}.
drain(_Drain) -> ?NOT_LOADED.

%% @doc Grants the cost of the frames before, and gives the next ones with theirs: `more' if there
%% may be more, `idle' if not; then the caller gets `{chatter_ready, Index}' when there are. Any
%% other atom (with no frames) is why the channel is over; `node_gone': the life of the other node
%% was given up or is over, and not this channel alone.
-spec fetch(channel(), cost()) -> {[binary()], cost(), more | idle | atom()}.
fetch(_Channel, _Granted) -> ?NOT_LOADED.

%% @doc The nodes found by multicast: name, id, incarnation, addresses, and how many ms ago they
%% were heard and said that they hear this one.
-spec found() -> [map()].
found() -> ?NOT_LOADED.

%% @doc Where a node that was found by multicast can be dialled; none if dialling it there has
%% failed lately.
-spec found_at(binary()) -> [{binary(), inet:port_number()}].
found_at(_Name) -> ?NOT_LOADED.

%% @doc The VM has taken frames of this cost.
-spec grant(channel(), cost()) -> ok.
grant(_Channel, _Cost) -> ?NOT_LOADED.

%% @doc Sends one message of the distribution handshake.
-spec handshake(channel(), binary()) -> ok | full | closed.
handshake(_Channel, _Message) -> ?NOT_LOADED.

%% @doc Asks for figures of the node: `{Ref, Map}' comes as a message if the result is `true'.
-spec info(reference()) -> boolean().
info(_Ref) -> ?NOT_LOADED.

%% @doc The caller fetches frames from now on.
-spec input(channel()) -> ok.
input(_Channel) -> ?NOT_LOADED.

%% @doc Whether there is a route to a node of that name.
-spec is_reachable(binary()) -> boolean().
is_reachable(_Name) -> ?NOT_LOADED.

%% @doc Asks for the links: `{Ref, [Map]}' comes as a message if the result is `true'.
-spec links(reference()) -> boolean().
links(_Ref) -> ?NOT_LOADED.

%% @doc The processes of which {@link set_manner/2} was told.
-spec manners() -> [chatter_governor:sender()].
manners() -> ?NOT_LOADED.

%% @doc Names of the nodes at the other ends of live links.
-spec neighbours() -> [binary()].
neighbours() -> ?NOT_LOADED.

%% @doc Asks for addresses: `{Ref, {Own, [{Name, Addresses}]}}' comes as a message if the result is
%% `true', with this node's own, and those of all nodes that are reachable or found by multicast.
-spec net_ids(reference()) -> boolean().
net_ids(_Ref) -> ?NOT_LOADED.

%% @doc Starts the node; takes a tenth of a second if the key comes from a cookie. Events go to the
%% caller: `{chatter_event, Event}', `{chatter_log, Level, Line}'.
-spec node_start(map()) ->
          {ok, [{port, inet:port_number() | none} | {id, binary()}]}
        | {error, binary() | already_started}.
node_start(_Config) -> ?NOT_LOADED.

%% @doc Stops the node; queued data has so many ms to leave.
-spec node_stop(non_neg_integer()) -> ok.
node_stop(_DrainMs) -> ?NOT_LOADED.

%% @doc Names of all reachable nodes.
-spec nodes() -> [binary()].
nodes() -> ?NOT_LOADED.

%% @doc Asks a node for a channel. The caller gets `{chatter, Index, opened}',
%% `{chatter, Index, {handshake, Message, Cost}}', `{chatter, Index, {closed, Reason}}'.
-spec open(binary(), distribution | messages) ->
          {ok, channel(), pos_integer()} | {error, no_route | not_started}.
open(_Name, _Kind) -> ?NOT_LOADED.

%% @doc Hands in one frame (its pieces in order) if there is room for its flow; `full' takes
%% nothing, and the controller gets `chatter_writable' when there is. Any process may call it.
-spec post(channel(), post_options(), [binary()]) -> ok | full | closed.
post(_Channel, _Options, _Frame) -> ?NOT_LOADED.

%% @doc The VM runs. Without this for 5 s, other nodes are told that it does not.
-spec pulse() -> ok.
pulse() -> ?NOT_LOADED.

%% @doc Whether `post/3' would take a frame of that flow now; see there.
-spec room(channel(), flow()) -> ok | full | closed.
room(_Channel, _Flow) -> ?NOT_LOADED.

%% @doc The hops to a node, that node last; empty if there is no route.
-spec route(binary()) -> [binary()].
route(_Name) -> ?NOT_LOADED.

%% @doc Sends frames. After `full' wait for `chatter_writable'. The senders named after `hold' have
%% too much queued, until the governor gets `{chatter_resume, [Sender]}'.
-spec send(channel(), frames()) -> Status | {hold, [chatter_governor:sender()], Status}
              when Status :: ok | full | closed.
send(_Channel, _Frames) -> ?NOT_LOADED.

%% @doc Names the process that is told which senders may go on: `{chatter_resume, [Sender]}'.
-spec governor(channel(), pid()) -> ok.
governor(_Channel, _Pid) -> ?NOT_LOADED.

%% @doc Names the process that gets channels which others open:
%% `{chatter_accept, Channel, Index, PeerName}'.
-spec set_acceptor(pid()) -> ok.
set_acceptor(_Pid) -> ?NOT_LOADED.

%% @doc From which level on the native side logs.
-spec set_log_level(logger:level() | none) -> ok.
set_log_level(_Level) -> ?NOT_LOADED.

%% @doc How what a process sends over connections is to be carried; `full' if too many have one.
-spec set_manner(chatter_governor:sender(), post_options()) -> ok | full.
set_manner(_Sender, _Options) -> ?NOT_LOADED.

%% @doc The caller gets the channels for messages that others open, as for `set_acceptor/1'. Needs
%% no node to be started.
-spec set_message_acceptor() -> ok.
set_message_acceptor() -> ?NOT_LOADED.

%% @doc The name that a node without one has by now; empty for none again. A node that was started
%% with a name keeps it.
-spec set_name(binary()) -> ok.
set_name(_Name) -> ?NOT_LOADED.

%% @doc Events and log lines go to the caller from now on. Whether a node runs.
-spec set_owner() -> boolean().
set_owner() -> ?NOT_LOADED.

%% @doc Received, sent, pending: for `mf_getstat'. The first grows while the other
%% node is alive and its VM runs.
-spec stat(channel()) -> {non_neg_integer(), non_neg_integer(), non_neg_integer()}.
stat(_Channel) -> ?NOT_LOADED.

%% @doc The caller takes over the handshake of a channel that another node opened.
-spec take(channel()) -> {ok, [{binary(), cost()}]} | {error, atom()}.
take(_Channel) -> ?NOT_LOADED.

%% @doc Asks for the network: `{Ref, {[{Id, Name}], [{Id, Id, Metric}]}}' comes as a message if the
%% result is `true'.
-spec topology(reference()) -> boolean().
topology(_Ref) -> ?NOT_LOADED.

%% @doc For how many ms nothing was passed on for other nodes, and how many bytes wait to be.
-spec transit() -> {non_neg_integer(), non_neg_integer()}.
transit() -> ?NOT_LOADED.

%% @doc What a process sends over connections is carried as that of others again.
-spec unset_manner(chatter_governor:sender()) -> ok.
unset_manner(_Sender) -> ?NOT_LOADED.
