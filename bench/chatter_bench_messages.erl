%% Messages and calls without a connection: chatter:send/3 and chatter:call/5 where Chatter is the
%% carrier, `!' and erpc:call/5 where it is not. As chatter_bench, whose output format it has; over
%% Chatter no node ever connects to another.
-module(chatter_bench_messages).

-export([main/3]).
-export([echo/1, count/3]).

-define(REACH_TIMEOUT_MS, 20000).
-define(CALL_MS, 10000).

-record(way, {send :: fun((pid() | {atom(), node()}, term()) -> term()),
              call :: fun((node(), module(), atom(), [term()]) -> term())}).

%% Node A, against a node B that runs chatter_bench:serve/0.
-spec main(node(), atom(), number()) -> no_return().
main(Peer, What, Scale) ->
    try
        Way = way(carrier()),
        reach(Peer, Way, erlang:monotonic_time(millisecond) + ?REACH_TIMEOUT_MS),
        show_route(Peer, carrier()),
        measure(What, Peer, Way, Scale),
        carrier() =:= chatter andalso ([] = nodes(connected)),
        halt(0)
    catch
        Class:Reason:Stack ->
            io:format("failed ~0p~n", [{What, Class, Reason, Stack}]),
            halt(1)
    end.

carrier() ->
    case init:get_argument(proto_dist) of
        {ok, [["chatter"]]} -> chatter;
        _ -> other
    end.

way(chatter) ->
    #way{send = fun(To, Message) -> ok = apply(chatter, send, [To, Message, []]) end,
         call = fun(Node, M, F, A) -> apply(chatter, call, [Node, M, F, A, ?CALL_MS]) end};
way(other) ->
    #way{send = fun(To, Message) -> To ! Message end,
         call = fun(Node, M, F, A) -> erpc:call(Node, M, F, A, ?CALL_MS) end}.

reach(Peer, #way{call = Call} = Way, Deadline) ->
    try Peer = Call(Peer, erlang, node, []), ok
    catch
        error:{erpc, _} ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({not_reached, Peer}),
            receive after 50 -> reach(Peer, Way, Deadline) end
    end.

show_route(Peer, chatter) ->
    {ok, Hops} = apply(chatter, route, [Peer]),
    io:format("route ~b~n", [length(Hops)]);
show_route(_, other) ->
    io:format("route 1~n").

%%% Measurements

measure(send, Peer, #way{send = Send} = Way, Scale) ->
    Echo = spawn_at(Peer, Way, echo, []),
    Trip = fun() ->
                   Send(Echo, {self(), ping}),
                   receive {Echo, ping} -> ok end
           end,
    _ = timed(Trip, 2000),
    percentiles("send_rtt", timed(Trip, scaled(20000, Scale)));
measure(send1, Peer, Way, Scale) ->
    messages("send_1_sender", Peer, Way, 1, scaled(200000, Scale), 70);
measure(send8, Peer, Way, Scale) ->
    messages("send_8_senders", Peer, Way, 8, scaled(30000, Scale), 70);
measure(send_mid, Peer, Way, Scale) ->
    messages("send_mid_4_senders", Peer, Way, 4, scaled(20000, Scale), 4096);
measure(call, Peer, #way{call = Call}, Scale) ->
    Trip = fun() -> Peer = Call(Peer, erlang, node, []) end,
    _ = timed(Trip, 500),
    percentiles("call_rtt", timed(Trip, scaled(10000, Scale)));
measure(call8, Peer, #way{call = Call}, Scale) ->
    N = scaled(4000, Scale),
    Trips = fun() -> [Peer = Call(Peer, erlang, node, []) || _ <- lists:seq(1, N)] end,
    Us = together([Trips || _ <- lists:seq(1, 8)]),
    figure("call_8_callers_per_s", 8 * N * 1.0e6 / Us);
measure(absent, Peer, #way{send = Send}, Scale) ->
    %% Nodes that nobody knows, on the host of the other one; each is written to twice.
    [_, Host] = string:split(atom_to_list(Peer), "@"),
    N = scaled(500, Scale),
    Nodes = [list_to_atom("absent" ++ integer_to_list(I) ++ "@" ++ Host)
             || I <- lists:seq(1, N)],
    erlang:garbage_collect(),
    Before = erlang:memory(total),
    Try = fun(Node) ->
                  fun() -> [catch Send({nobody, Node}, hello) || _ <- [1, 2]] end
          end,
    Us = together([Try(Node) || Node <- Nodes]),
    receive after 1000 -> ok end,
    Kept = erlang:memory(total) - Before,
    figure("absent_peers_per_s", N * 1.0e6 / Us),
    figure("absent_kept_bytes", max(0, Kept) / N).

%% Runs each in a process of its own; microseconds until the last one is done.
together(Funs) ->
    {Us, _} = timer:tc(fun() ->
                               Refs = [element(2, spawn_monitor(Fun)) || Fun <- Funs],
                               [receive {'DOWN', Ref, _, _, normal} -> ok end || Ref <- Refs]
                       end),
    Us.

%% N messages of Size bytes from each of the senders to a sink of its own.
messages(Name, Peer, Way, Senders, N, Size) ->
    _ = burst(Peer, Way, Senders, N div 4, Size),
    Us = burst(Peer, Way, Senders, N, Size),
    figure(Name ++ "_per_s", Senders * N * 1.0e6 / Us).

burst(Peer, #way{send = Send} = Way, Senders, N, Size) ->
    Data = rand:bytes(Size),
    Sinks = [spawn_at(Peer, Way, count, [self(), N]) || _ <- lists:seq(1, Senders)],
    {Us, _} = timer:tc(
                fun() ->
                        [spawn_link(fun() -> repeat(N, fun() -> Send(Sink, Data) end) end)
                         || Sink <- Sinks],
                        [receive {counted, Sink, Bytes} -> Bytes = N * Size end
                         || Sink <- Sinks]
                end),
    Us.

spawn_at(Peer, #way{call = Call}, F, Args) ->
    Call(Peer, erlang, spawn, [?MODULE, F, [carrier() | Args]]).

repeat(0, _) -> ok;
repeat(N, Fun) -> _ = Fun(), repeat(N - 1, Fun).

timed(Fun, N) ->
    [begin
         Began = erlang:monotonic_time(nanosecond),
         _ = Fun(),
         erlang:monotonic_time(nanosecond) - Began
     end || _ <- lists:seq(1, N)].

scaled(N, Scale) -> max(100, round(N * Scale)).

%%% What runs on node B

-spec echo(chatter | other) -> no_return().
echo(Carrier) ->
    #way{send = Send} = way(Carrier),
    echoing(Send).

echoing(Send) ->
    receive {From, Term} -> Send(From, {self(), Term}) end,
    echoing(Send).

-spec count(chatter | other, pid(), non_neg_integer()) -> term().
count(Carrier, Report, N) ->
    #way{send = Send} = way(Carrier),
    Send(Report, {counted, self(), counted(N, 0)}).

counted(0, Bytes) -> Bytes;
counted(N, Bytes) -> receive Data -> counted(N - 1, Bytes + byte_size(Data)) end.

%%% Output

percentiles(Name, Samples) ->
    Sorted = lists:sort(Samples),
    figure(Name ++ "_p50_us", nth(Sorted, 0.5) / 1000),
    figure(Name ++ "_p99_us", nth(Sorted, 0.99) / 1000).

nth(Sorted, Part) -> lists:nth(max(1, round(length(Sorted) * Part)), Sorted).

figure(Name, Value) -> io:format("figure ~s ~.3f~n", [Name, float(Value)]).
