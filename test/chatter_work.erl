%% What the suites have nodes do, and how they look at the outcome.
%%
%% A piece of work is a fun that runs on the node (over standard_io, never over the carrier
%% under test), so nodes that start/2 of this module starts have the test modules in their
%% path. Work that outlives the call runs in processes registered on the node:
%%
%%   chatter_watch   keeps what net_kernel:monitor_nodes/2 tells, with the time
%%   any name        given to sink/2: checks the numbered messages of flood/4
-module(chatter_work).

-export([start/1, start/2, pair/0, pair/1, flags/1, shared/1, on/2, on/3]).
-export([watch/1, events/1, await_down/3, await_gone/1, connect/2, disconnect/2, channels/1]).
-export([pattern/1, sink/2, flood/4, seen/2, await_seen/3, rss/1, now_ms/0, connection/2]).

-type peer() :: chatter_cluster:peer().

-define(CALL_MS, 60000).

%% A node that has the test modules.
-spec start(atom()) -> peer().
start(Name) -> start(Name, #{}).

-spec start(atom(), chatter_cluster:opts()) -> peer().
start(Name, Opts) -> chatter_cluster:start(Name, with_tests(Opts)).

with_tests(Opts) ->
    Opts#{args => ["-pa", filename:dirname(code:which(?MODULE)) | maps:get(args, Opts, [])]}.

%% Two nodes that are directly linked and connected.
-spec pair() -> [peer()].
pair() -> pair(#{}).

-spec pair(chatter_cluster:opts()) -> [peer()].
pair(Opts) ->
    A = start(a, Opts),
    B = start(b, Opts),
    connect(A, B),
    [A, B].

%% The flags of a node, without its name.
-spec flags(chatter_cluster:opts()) -> [string()].
flags(Opts) ->
    [_Flag, _Name | Flags] = chatter_cluster:node_args(x, with_tests(Opts)),
    Flags.

%% Fun's nodes live longer than this case: what they print goes to the user, not to the log
%% of a case that is over.
-spec shared(fun(() -> T)) -> T.
shared(Fun) ->
    Leader = group_leader(),
    group_leader(whereis(user), self()),
    try Fun() after group_leader(Leader, self()) end.

-spec on(peer(), fun(() -> T)) -> T.
on(Peer, Fun) -> on(Peer, Fun, ?CALL_MS).

-spec on(peer(), fun(() -> T), timeout()) -> T.
on(Peer, Fun, TimeoutMs) -> chatter_cluster:call(Peer, erlang, apply, [Fun, []], TimeoutMs).

%%% Connections

-spec connect(peer(), peer()) -> ok.
connect(A, #{node := NodeB} = B) ->
    #{node := NodeA} = A,
    chatter_cluster:wait_until(fun() -> pong =:= on(A, fun() -> net_adm:ping(NodeB) end) end,
                               15000),
    chatter_cluster:wait_until(fun() -> on(B, fun() -> lists:member(NodeA, nodes(connected)) end)
                               end, 15000).

%% Ends the connection and returns when neither end knows of it any more.
-spec disconnect(peer(), peer()) -> ok.
disconnect(#{node := NodeA} = A, #{node := NodeB} = B) ->
    chatter_cluster:wait_until(
      fun() ->
              %% Again each time: a process of the round before may just have connected.
              _ = on(A, fun() -> erlang:disconnect_node(NodeB) end),
              not lists:member(NodeB, on(A, fun() -> nodes(connected) end)) andalso
                  not lists:member(NodeA, on(B, fun() -> nodes(connected) end))
      end, 10000).

%% How many channels the native node has.
-spec channels(peer()) -> non_neg_integer().
channels(Peer) -> maps:get(channels, on(Peer, fun chatter:info/0)).

%% The processes of the connection to a node; runs on the node itself.
-spec connection(node(), controller | input | supervisor) -> pid().
connection(Node, controller) ->
    {Node, Ctrl} = lists:keyfind(Node, 1, erlang:system_info(dist_ctrl)),
    Ctrl;
connection(Node, Which) ->
    {links, Links} = process_info(connection(Node, controller), links),
    [Pid] = [Pid || Pid <- Links, is_pid(Pid), kind(process_info(Pid, initial_call)) =:= Which],
    Pid.

kind({initial_call, {chatter_dist_ctrl, input, _}}) -> input;
kind({initial_call, {chatter_dist, Do, _}}) when Do =:= do_setup; Do =:= do_accept -> supervisor;
kind(_) -> other.

%%% Events

%% From now on the node keeps what it is told of others.
-spec watch(peer()) -> ok.
watch(Peer) ->
    on(Peer, fun() ->
                     Self = self(),
                     spawn(fun() ->
                                   true = register(chatter_watch, self()),
                                   ok = net_kernel:monitor_nodes(true, [{node_type, all}]),
                                   Self ! watching,
                                   watching([])
                           end),
                     receive watching -> ok end
             end).

watching(Events) ->
    receive
        {Event, Node, _} -> watching([{Event, Node, now_ms()} | Events]);
        {events, From} -> From ! {events, lists:reverse(Events)}, watching(Events)
    end.

-spec events(peer()) -> [{nodeup | nodedown, node(), integer()}].
events(Peer) ->
    on(Peer, fun() ->
                     chatter_watch ! {events, self()},
                     receive {events, Events} -> Events end
             end).

%% The time at which the node was told that the other one is down.
-spec await_down(peer(), node(), pos_integer()) -> integer().
await_down(Peer, Node, TimeoutMs) ->
    chatter_cluster:wait_until(
      fun() ->
              case [At || {nodedown, N, At} <- events(Peer), N =:= Node] of
                  [At | _] -> {ok, At};
                  [] -> {no_nodedown, events(Peer)}
              end
      end, TimeoutMs).

%% Returns when the operating system's process is gone, with the time.
-spec await_gone(peer()) -> integer().
await_gone(#{os_pid := OsPid}) ->
    Stat = "/proc/" ++ OsPid ++ "/stat",
    chatter_cluster:wait_until(
      fun() ->
              case file:read_file(Stat) of
                  {error, _} -> {ok, now_ms()};
                  {ok, Text} ->
                      case re:run(Text, "^\\d+ \\(.*\\) [ZX] ") of
                          nomatch -> Text;
                          _ -> {ok, now_ms()}
                      end
              end
      end, 20000).

%% One clock for all nodes of this machine.
-spec now_ms() -> integer().
now_ms() -> os:system_time(millisecond).

%% Resident memory of the node, in MiB.
-spec rss(peer()) -> non_neg_integer().
rss(#{os_pid := OsPid}) ->
    {ok, Status} = file:read_file("/proc/" ++ OsPid ++ "/status"),
    {match, [KiB]} = re:run(Status, "VmRSS:\\s+(\\d+)", [{capture, all_but_first, list}]),
    list_to_integer(KiB) div 1024.

%%% Traffic

%% So many bytes that are not all alike.
-spec pattern(non_neg_integer()) -> binary().
pattern(Size) ->
    Block = << <<(I * I bsr 3):8>> || I <- lists:seq(1, min(Size, 65521)) >>,
    Copies = Size div 65521 + 1,
    binary:copy(binary:part(binary:copy(Block, Copies), 0, Size)).

%% A process of this name that expects {Sender, 1, _}, {Sender, 2, _} and so on from each.
-spec sink(peer(), atom()) -> ok.
sink(Peer, Name) ->
    on(Peer, fun() ->
                     Self = self(),
                     spawn(fun() ->
                                   process_flag(message_queue_data, off_heap),
                                   true = register(Name, self()),
                                   Self ! {sink, Name},
                                   sunk(#{}, 0, [])
                           end),
                     receive {sink, Name} -> ok end
             end).

sunk(Last, Count, Wrong) ->
    receive
        {seen, From} ->
            From ! {seen, {Count, Wrong}},
            sunk(Last, Count, Wrong);
        {Sender, N, _} ->
            case maps:get(Sender, Last, 0) of
                M when N =:= M + 1 -> sunk(Last#{Sender => N}, Count + 1, Wrong);
                M -> sunk(Last#{Sender => N}, Count + 1, [{Sender, M, N} | lists:sublist(Wrong, 9)])
            end
    end.

%% What the sink has had: how many, and what was out of order.
-spec seen(peer(), atom()) -> {non_neg_integer(), [term()]}.
seen(Peer, Name) ->
    on(Peer, fun() -> Name ! {seen, self()}, receive {seen, Seen} -> Seen end end).

%% Returns when the sink has had so many, all of them in order.
-spec await_seen({peer(), atom()}, non_neg_integer(), pos_integer()) -> ok.
await_seen({Peer, Name}, Count, TimeoutMs) ->
    chatter_cluster:wait_until(
      fun() ->
              case seen(Peer, Name) of
                  {Count, []} -> true;
                  {_, [_ | _]} = Seen -> {ok, error({not_in_order, Seen})};
                  Seen -> Seen
              end
      end, TimeoutMs).

%% On the node: Senders processes, each sending Each numbered messages to Dest; Payloads are
%% taken in turn. Returns at once with the processes.
-spec flood(peer(), {atom(), node()}, {pos_integer(), pos_integer()}, [non_neg_integer()]) ->
          [pid()].
flood(Peer, Dest, {Senders, Each}, Sizes) ->
    on(Peer, fun() ->
                     Payloads = list_to_tuple([pattern(Size) || Size <- Sizes]),
                     [spawn(fun() -> pour(Dest, Id, 1, Each, Payloads) end)
                      || Id <- lists:seq(1, Senders)]
             end).

pour(_Dest, _Id, N, Each, _Payloads) when N > Each -> ok;
pour(Dest, Id, N, Each, Payloads) ->
    Dest ! {{node(), Id}, N, element(N rem tuple_size(Payloads) + 1, Payloads)},
    pour(Dest, Id, N + 1, Each, Payloads).
