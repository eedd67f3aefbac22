%% The measuring side of compare.py. It knows nothing of carriers: node A runs main/3
%% against node B, which runs serve/0, and whatever connects the two is what is measured.
%%
%% Output, one line each: `figure NAME VALUE` and `route HOPS`. What was sent is counted
%% in bytes by the receiver, and a run whose count is wrong fails instead of being fast.
-module(chatter_bench).

-export([serve/0, main/3]).
-export([echo/0, count/2, swallow/0, confirm/0]).

-define(CONNECT_TIMEOUT_MS, 20000).
-define(BESIDE_MS, 6000).
-define(MIB, 1048576).

%% Streams are watched for so long, and so many messages.
-define(STREAMS_MS, 3000).
-define(STREAMS_COUNT, 24).

%% Node B: says that it has booted, and waits.
-spec serve() -> no_return().
serve() ->
    io:format("ready ~s~n", [node()]),
    receive after infinity -> ok end.

%% Node A: `What` is the name of a measurement below, `Scale` shortens (< 1) what is
%% counted in messages, for a quick look.
-spec main(node(), atom(), number()) -> no_return().
main(Peer, What, Scale) ->
    try
        connect(Peer, erlang:monotonic_time(millisecond) + ?CONNECT_TIMEOUT_MS),
        show_route(Peer),
        measure(What, Peer, Scale),
        halt(0)
    catch
        Class:Reason:Stack ->
            io:format("failed ~0p~n", [{What, Class, Reason, Stack}]),
            halt(1)
    end.

connect(Peer, Deadline) ->
    case net_adm:ping(Peer) of
        pong ->
            ok;
        pang ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({no_connection, Peer}),
            receive after 50 -> connect(Peer, Deadline) end
    end.

show_route(Peer) ->
    case init:get_argument(proto_dist) of
        {ok, [["chatter"]]} ->
            {ok, Hops} = apply(chatter, route, [Peer]),
            io:format("route ~b~n", [length(Hops)]);
        _ ->
            io:format("route 1~n")
    end.

%%% Measurements

measure(latency, Peer, Scale) ->
    Echo = spawn(Peer, ?MODULE, echo, []),
    _ = round_trips(Echo, 2000),
    percentiles("rtt", round_trips(Echo, scaled(20000, Scale)));
measure(small1, Peer, Scale) ->
    messages("small_1_sender", Peer, 1, scaled(400000, Scale), 70);
measure(small8, Peer, Scale) ->
    messages("small_8_senders", Peer, 8, scaled(60000, Scale), 70);
measure(mid, Peer, Scale) ->
    messages("mid_4_senders", Peer, 4, scaled(20000, Scale), 4096);
measure(large, Peer, Scale) ->
    Sink = spawn(Peer, ?MODULE, confirm, []),
    Data = rand:bytes(8 * ?MIB),
    ok = two_in_flight(Sink, Data, 4),
    N = max(8, scaled(64, Scale)),
    {Us, ok} = timer:tc(fun() -> two_in_flight(Sink, Data, N) end),
    figure("large_mb_per_s", N * byte_size(Data) / Us);
measure(hol, Peer, _Scale) ->
    %% Four senders, each with one 8 MiB message under way.
    Sink = spawn(Peer, ?MODULE, confirm, []),
    Data = rand:bytes(8 * ?MIB),
    beside("hol", Peer, fun() -> stream(Sink, Data) end);
measure(flood, Peer, _Scale) ->
    %% Four senders that wait for nothing: only the carrier holds them back.
    Sink = spawn(Peer, ?MODULE, swallow, []),
    Data = rand:bytes(?MIB),
    beside("flood", Peer, fun() -> flood(Sink, Data) end);
measure(streams, Peer, _Scale) ->
    %% The streams of hol: what they carry alone, and what of that beside small round trips.
    Sink = spawn(Peer, ?MODULE, confirm, []),
    Data = rand:bytes(8 * ?MIB),
    Done = counters:new(1, []),
    Streams = [spawn_link(fun() -> stream(Sink, Data, Done) end) || _ <- lists:seq(1, 4)],
    _ = await_done(Done, 4),
    Alone = rate(Done, byte_size(Data)),
    Echo = spawn(Peer, ?MODULE, echo, []),
    Small = spawn_opt(fun() -> sample(Echo, infinity, []) end, [link, {priority, high}]),
    Beside = rate(Done, byte_size(Data)),
    [begin unlink(Pid), exit(Pid, kill) end || Pid <- [Small | Streams]],
    figure("streams_alone_mb_per_s", Alone),
    figure("streams_beside_mb_per_s", Beside),
    figure("streams_kept", Beside / Alone).

%% N messages of Size bytes from each of the senders to a sink of its own.
messages(Name, Peer, Senders, N, Size) ->
    _ = burst(Peer, Senders, N div 4, Size),
    Us = burst(Peer, Senders, N, Size),
    figure(Name ++ "_per_s", Senders * N * 1.0e6 / Us).

burst(Peer, Senders, N, Size) ->
    Me = self(),
    Data = rand:bytes(Size),
    Sinks = [spawn(Peer, ?MODULE, count, [Me, N]) || _ <- lists:seq(1, Senders)],
    {Us, _} = timer:tc(
                fun() ->
                        [spawn_link(fun() -> repeat(N, fun() -> Sink ! Data end) end)
                         || Sink <- Sinks],
                        [receive {counted, Sink, Bytes} -> Bytes = N * Size end
                         || Sink <- Sinks]
                end),
    Us.

%% Small round trips while something else keeps the carrier busy.
beside(Name, Peer, Load) ->
    Echo = spawn(Peer, ?MODULE, echo, []),
    _ = round_trips(Echo, 200),
    Loaders = [spawn_link(Load) || _ <- lists:seq(1, 4)],
    receive after 500 -> ok end,
    Old = process_flag(priority, high),
    Samples = sample(Echo, erlang:monotonic_time(millisecond) + ?BESIDE_MS, []),
    _ = process_flag(priority, Old),
    [begin unlink(Pid), exit(Pid, kill) end || Pid <- Loaders],
    percentiles(Name, Samples),
    figure(Name ++ "_max_us", lists:max(Samples) / 1000).

sample(Echo, Until, Samples) ->
    Ns = round_trip(Echo),
    case erlang:monotonic_time(millisecond) >= Until of
        true -> [Ns | Samples];
        false -> receive after 2 -> sample(Echo, Until, [Ns | Samples]) end
    end.

round_trips(Echo, N) -> [round_trip(Echo) || _ <- lists:seq(1, N)].

round_trip(Echo) ->
    Began = erlang:monotonic_time(nanosecond),
    Echo ! {self(), ping},
    receive {Echo, ping} -> erlang:monotonic_time(nanosecond) - Began end.

two_in_flight(Sink, Data, N) ->
    Sink ! {self(), Data},
    repeat(N - 1, fun() -> Sink ! {self(), Data}, confirmed(Sink, Data) end),
    confirmed(Sink, Data).

stream(Sink, Data) ->
    stream(Sink, Data, counters:new(1, [])).

stream(Sink, Data, Done) ->
    Sink ! {self(), Data},
    confirmed(Sink, Data),
    counters:add(Done, 1, 1),
    stream(Sink, Data, Done).

%% MB/s, from the end of one message to that of another.
rate(Done, Size) ->
    {From, Began} = await_done(Done, counters:get(Done, 1) + 1),
    receive after ?STREAMS_MS -> ok end,
    Least = max(From + ?STREAMS_COUNT, counters:get(Done, 1) + 1),
    {To, Ended} = await_done(Done, Least),
    (To - From) * Size / (Ended - Began).

%% How many there are as soon as there are so many, and when that is, in us.
await_done(Done, Least) ->
    case counters:get(Done, 1) of
        Count when Count >= Least -> {Count, erlang:monotonic_time(microsecond)};
        _ -> receive after 1 -> await_done(Done, Least) end
    end.

flood(Sink, Data) ->
    Sink ! Data,
    flood(Sink, Data).

confirmed(Sink, Data) ->
    receive {Sink, Bytes} -> Bytes = byte_size(Data), ok end.

repeat(0, _) -> ok;
repeat(N, Fun) -> _ = Fun(), repeat(N - 1, Fun).

scaled(N, Scale) -> max(100, round(N * Scale)).

%%% What runs on node B

-spec echo() -> no_return().
echo() -> receive {From, Term} -> From ! {self(), Term} end, echo().

-spec count(pid(), non_neg_integer()) -> {counted, pid(), non_neg_integer()}.
count(Report, N) -> count(Report, N, 0).

count(Report, 0, Bytes) -> Report ! {counted, self(), Bytes};
count(Report, N, Bytes) -> receive Data -> count(Report, N - 1, Bytes + byte_size(Data)) end.

-spec confirm() -> no_return().
confirm() -> receive {From, Data} -> From ! {self(), byte_size(Data)} end, confirm().

-spec swallow() -> no_return().
swallow() -> receive Data when is_binary(Data) -> swallow() end.

%%% Output

percentiles(Name, Samples) ->
    Sorted = lists:sort(Samples),
    figure(Name ++ "_p50_us", nth(Sorted, 0.5) / 1000),
    figure(Name ++ "_p99_us", nth(Sorted, 0.99) / 1000).

nth(Sorted, Part) -> lists:nth(max(1, round(length(Sorted) * Part)), Sorted).

figure(Name, Value) -> io:format("figure ~s ~.3f~n", [Name, float(Value)]).
