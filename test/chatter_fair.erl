%% Fairness and isolation of flows, as a table with the bar (`make fair`, docs/testing.md). Every
%% measure has nodes of its own in a laboratory, where links have the rate that is wanted.
%%
%%   jain   what equal senders get of a link in one second (Jain's index; 1 is equal)
%%   onset  what is queued soon after some large senders have begun
%%   queue  how much a sender with 10,000 messages queued raises the p99 of others beside it
%%   high   what is left to bulk when high priority asks for 95 % of a link
%%   class  round trips of 32 KiB beside bulk, by the class of who asks: over a connection
%%          (chatter:set_class/2) and without one (chatter:send/3)
%%   slow   what 31 channels through a relay keep when the receiver of the 32nd stops
%%   loss   p99 of flows on a clean way when another way of the same nodes loses and reorders
%%
%% Exit code of main/0: 1 if a figure misses its bar.
-module(chatter_fair).

-export([main/0, measures/0, measure/2]).
-export([sinks/1, counted/1, flood/2, paced/3, pings/2, one_way/2, stamped/2]).
-export([answer/1, fill/3, asked/4]).

-export_type([row/0]).

-type row() :: #{what := string(), value := number(), bar := none | {'>=' | '=<', number()}}.

-import(chatter_work, [on/2, on/3]).

-define(KBIT, 100000).
-define(BYTES_PER_S, (?KBIT * 125)).

-spec main() -> no_return().
main() ->
    Given = maps:from_list([{Key, Value} || Word <- init:get_plain_arguments(),
                                            [Key, Value] <- [string:split(Word, "=")],
                                            Value =/= ""]),
    Only = [list_to_existing_atom(W) || W <- string:lexemes(maps:get("ONLY", Given, ""), ",")],
    case chatter_lab:available() of
        {skip, Why} -> io:format("SKIPPED: ~ts~n", [Why]), halt(0);
        ok -> ok
    end,
    Wanted = [M || M <- measures(), Only =:= [] orelse lists:member(M, Only)],
    Rows = lists:append([show(M, quietly(fun() -> measure(M, []) end)) || M <- Wanted]),
    halt(case [Row || Row <- Rows, not holds(Row)] of [] -> 0; _ -> 1 end).

%% What the nodes print goes into a file.
quietly(Fun) ->
    Leader = group_leader(),
    {ok, Log} = file:open("_build/fair.log", [append, {encoding, utf8}]),
    true = group_leader(Log, self()),
    try Fun()
    after
        true = group_leader(Leader, self()),
        ok = file:close(Log)
    end.

show(Measure, {skip, Why}) ->
    io:format("~-6s SKIPPED: ~s~n", [Measure, Why]),
    [];
show(Measure, Rows) ->
    [begin
         Bar = case maps:get(bar, Row) of
                   none -> "";
                   {Sign, Number} -> io_lib:format("bar ~s ~w", [Sign, Number])
               end,
         Verdict = case {maps:get(bar, Row), holds(Row)} of
                       {none, _} -> "";
                       {_, true} -> "ok";
                       {_, false} -> "MISSED"
                   end,
         io:format("~-6s ~-58s ~10.3f  ~-12s ~s~n",
                   [Measure, What, 1.0 * Value, Bar, Verdict])
     end || #{what := What, value := Value} = Row <- Rows],
    Rows.

holds(#{bar := none}) -> true;
holds(#{bar := {'>=', Bar}, value := Value}) -> Value >= Bar;
holds(#{bar := {'=<', Bar}, value := Value}) -> Value =< Bar.

-spec measures() -> [atom()].
measures() -> [jain, onset, queue, high, class, slow, loss].

%% The figures of a measure; Keys are configuration of the nodes.
-spec measure(atom(), [{atom(), term()}]) -> [row()] | {skip, string()}.
measure(jain, Keys) ->
    in_lab(2, bridge, [{1, 2}], Keys, fun jain/2);
measure(onset, Keys) ->
    in_lab(2, bridge, [{1, 2}], Keys, fun onset/2);
measure(queue, Keys) ->
    in_lab(2, bridge, [{1, 2}], Keys, fun queue/2);
measure(high, Keys) ->
    in_lab(2, bridge, [{1, 2}], Keys, fun high/2);
measure(class, Keys) ->
    in_lab(2, bridge, [{1, 2}], Keys, fun class/2);
measure(slow, Keys) ->
    %% 1 is the relay, 2 to 5 send to 6 to 13.
    in_lab(13, bridge, [{1, I} || I <- lists:seq(2, 13)], Keys, fun slow/2);
measure(loss, Keys) ->
    in_lab(4, switch, [{1, 2}, {2, 4}, {1, 3}, {3, 4}], Keys, fun loss/2).

in_lab(Nodes, Network, Links, Keys, Fun) ->
    ok = chatter_cluster:new(),
    Lab = chatter_lab:open(#{nodes => Nodes, network => Network, seed => 1}),
    try
        Peers = [chatter_lab:start(Lab, I, #{chatter => Keys, links => static,
                                             neighbours => [chatter_lab:node_name(J) || J <- Js]})
                 || I <- lists:seq(1, Nodes), Js <- [chatter_nemesis_plan:neighbours(I, Links)]],
        ok = chatter_cluster:await_routes(Peers, 60000),
        Fun(Lab, Peers)
    after
        ok = chatter_cluster:stop_all(),
        ok = chatter_lab:close(Lab)
    end.

row(What, Value, Bar) -> #{what => What, value => Value, bar => Bar}.

%%% ------------------------------------------------------------------------------------
%%% The measures

%% 64 processes send messages of 1 KiB to one each and wait for nothing.
jain(Lab, [A, B]) ->
    chatter_work:connect(A, B),
    [begin
         ok = chatter_lab:rate(Lab, 1, Rate),
         Sinks = on(B, fun() -> sinks(64) end),
         Senders = on(A, fun() -> [start(flood, [Sink, 1024]) || Sink <- Sinks] end),
         pause(2000),
         Counts = on(B, fun() -> counted(1000) end),
         stop(A, Senders),
         row("Jain index, 64 senders of 1 KiB, 1 s, " ++ rate_name(Rate), jain_index(Counts),
             {'>=', 0.99})
     end || Rate <- [?KBIT, none]].

rate_name(none) -> "as fast as it goes";
rate_name(Kbit) -> integer_to_list(Kbit div 1000) ++ " Mbit/s".

jain_index(Xs) ->
    case lists:sum([X * X || X <- Xs]) of
        0 -> 0.0;
        Squares -> Sum = lists:sum(Xs), Sum * Sum / (length(Xs) * Squares)
    end.

%% Four senders of large messages. What they hand over before they are held back is what all others
%% wait behind.
onset(Lab, [A, #{node := NodeB} = B]) ->
    chatter_work:connect(A, B),
    ok = chatter_lab:rate(Lab, 1, ?KBIT),
    Sinks = on(B, fun() -> sinks(4) end),
    Senders = on(A, fun() -> [start(flood, [Sink, 1 bsl 20]) || Sink <- Sinks] end),
    pause(700),
    Waiting = on(A, fun() ->
                            #{channels := Channels} = chatter:info(NodeB),
                            lists:sum([Bytes || #{kind := distribution,
                                                  waiting_bytes := Bytes} <- Channels])
                    end),
    stop(A, Senders),
    [row("queued 0.7 s after four senders of 1 MiB began, MiB", Waiting / (1 bsl 20),
         {'=<', 16})].

%% 63 processes that each have one message of 1 KiB under way; then one more, which sends 10,000
%% at a time.
queue(Lab, [A, B]) ->
    chatter_work:connect(A, B),
    ok = chatter_lab:rate(Lab, 1, ?KBIT),
    Echo = on(B, fun() -> [start_echo() || _ <- lists:seq(1, 64)] end),
    [HogEcho | Echoes] = Echo,
    Before = on(A, fun() -> pings(Echoes, 4000) end, 60000),
    Hog = on(A, fun() -> [spawn(fun() -> burst(HogEcho, 10000) end)] end),
    pause(1000),
    During = on(A, fun() -> pings(Echoes, 4000) end, 120000),
    stop(A, Hog),
    {P99, P99Beside} = {percentile(Before, 0.99), percentile(During, 0.99)},
    [row("p99 of 63 senders, ms", P99 / 1000, none),
     row("p99 beside 10,000 queued, ms", P99Beside / 1000, none),
     row("ratio", P99Beside / max(1, P99), {'=<', 1.2})].

%% High priority asks for 95 % of the link; four senders of large messages take what is left.
high(Lab, [A, B]) ->
    chatter_work:connect(A, B),
    ok = chatter_lab:rate(Lab, 1, ?KBIT),
    Sinks = [HighSink | BulkSinks] = on(B, fun() -> sinks(5) end),
    PerMs = round(0.95 * ?BYTES_PER_S / 1000 / 1100), % with the headers of a packet
    Pids = on(A, fun() ->
                         High = start(paced, [HighSink, 1024, PerMs]),
                         ok = chatter:set_class(High, [{priority, high}]),
                         [High | [start(flood, [Sink, 1 bsl 20]) || Sink <- BulkSinks]]
                 end),
    pause(2000),
    [High | Bulk] = on(B, fun() -> counted(12000) end, 60000),
    stop(A, Pids),
    5 = length(Sinks),
    [row("high priority, share of the link", High / 12 / ?BYTES_PER_S, none),
     row("bulk beside high priority at 95 %, share of the link",
         lists:sum(Bulk) / 12 / ?BYTES_PER_S, {'>=', 0.1})].

%% Four senders of large messages fill the link; one process asks with 32 KiB, which is no small
%% message, and gets a small answer.
class(Lab, [A, B]) ->
    chatter_work:connect(A, B),
    ok = chatter_lab:rate(Lab, 1, ?KBIT),
    [Plain, Sent] =
        [begin
             {Echo, Sinks} = on(B, fun() -> {start(answer, [Way]), sinks(4)} end),
             Bulk = on(A, fun() -> [start(fill, [Way, Sink, 1 bsl 20]) || Sink <- Sinks] end),
             %% Until what they send at first, before they are held back, has left.
             pause(5000),
             P50s = [begin
                         Samples = on(A, fun() -> asked(Way, Class, Echo, 4000) end, 60000),
                         percentile(Samples, 0.5) / 1000
                     end || Class <- [high, normal, low]],
             stop(A, Bulk),
             %% What was under way.
             pause(3000),
             P50s
         end || Way <- [plain, send]],
    lists:append(
      [[row("p50 of 32 KiB, high, " ++ What ++ ", ms", High, none),
        row("the same, normal", Normal, none),
        row("the same, low", Low, none),
        row("high / normal", High / Normal, {'=<', 0.5}),
        row("normal / low", Normal / Low, {'=<', 0.8})]
       || {What, [High, Normal, Low]} <- [{"by !", Plain}, {"by send/3", Sent}]]).

slow(Lab, [Relay | Peers]) ->
    {Left, Right} = lists:split(4, Peers),
    _ = [chatter_work:connect(L, R) || L <- Left, R <- Right],
    ok = chatter_lab:rate(Lab, 1, 2 * ?KBIT),
    %% A sink in each of the eight for each of the four.
    Sinks = [on(R, fun() -> sinks(4) end) || R <- Right],
    Pids = [{L, on(L, fun() -> [start(flood, [lists:nth(I, S), 4096]) || S <- Sinks] end)}
            || {I, L} <- lists:zip([1, 2, 3, 4], Left)],
    pause(4000),
    Before = counts(Right),
    Rss = chatter_work:rss(Relay),
    [#{node := Stopped} | _] = Left,
    [First | _] = Right,
    on(First, fun() ->
                      Input = chatter_work:connection(Stopped, input),
                      _ = spawn(fun() ->
                                        erlang:suspend_process(Input),
                                        receive after infinity -> ok end
                                end),
                      ok
              end),
    pause(4000),
    After = counts(Right),
    Grown = chatter_work:rss(Relay) - Rss,
    [stop(L, Ps) || {L, Ps} <- Pids],
    [_ | Others0] = Before,
    [Still | Others] = After,
    Shares = [Y / max(1, X) || {X, Y} <- lists:zip(Others0, Others)],
    [row("the stopped channel, MB/s", Still / 3.0e6, none),
     row("the other 31 together, of what they had", lists:sum(Others) / lists:sum(Others0),
         {'>=', 0.95}),
     row("the one of them that keeps least", lists:min(Shares), none),
     row("the relay has grown by, MiB", Grown, {'=<', 32})].

%% Bytes in three seconds: of the first node from the first, from the second and so on.
counts(Right) ->
    Self = self(),
    Pids = [spawn_link(fun() -> Self ! {self(), on(R, fun() -> counted(3000) end, 30000)} end)
            || R <- Right],
    lists:append([receive {Pid, Counts} -> Counts end || Pid <- Pids]).

%% 64 processes send 50 small messages a second each, over two equally long ways. A flow on the
%% clean way has lost nothing: at least a quarter of them are there. By turns without and with loss,
%% as what the machine does besides changes the figure more than that.
loss(Lab, [A, _, _, D]) ->
    chatter_work:connect(A, D),
    Slow = chatter_lab:both([{1, 3}, {3, 4}]),
    ok = chatter_lab:shape(Lab, chatter_lab:both([{1, 2}, {2, 4}, {1, 3}, {3, 4}]), [{delay, 0.5}]),
    Turns = [[begin
                  ok = chatter_lab:shape(Lab, Slow, [{loss, Loss}, {reorder, Reorder}]),
                  pause(1000),
                  lists:sort(latencies(A, D))
              end || {Loss, Reorder} <- [{0, 0}, {1.0, 5}]] || _ <- lists:seq(1, 5)],
    {Clean, Lossy} = lists:unzip([{quarter(Without), quarter(With)} || [Without, With] <- Turns]),
    {P99, P99Beside} = {percentile(Clean, 0.5), percentile(Lossy, 0.5)},
    Fine = [length([P || P <- With, P =< 1.2 * P99]) || [_, With] <- Turns],
    [row("p99 of the quarter with least, nothing lost, ms", P99 / 1000, none),
     row("the same with 1 % loss and reordering on one way, ms", P99Beside / 1000, none),
     row("ratio", P99Beside / max(1, P99), {'=<', 1.2}),
     row("flows within 1.2 of that", percentile(Fine, 0.5), none)].

quarter(P99s) -> lists:nth(length(P99s) div 4, P99s).

%% p99 of each flow, in microseconds.
latencies(A, D) ->
    Receivers = on(D, fun() -> one_way(64, 500) end),
    Senders = on(A, fun() -> [start(stamped, [R, 20]) || R <- Receivers] end),
    P99s = on(D, fun() -> [begin
                               R ! {p99, self()},
                               receive {p99, R, P99} -> P99 end
                           end || R <- Receivers] end, 120000),
    stop(A, Senders),
    P99s.

%%% ------------------------------------------------------------------------------------
%%% On the nodes

start(Function, Args) -> spawn(fun() -> apply(?MODULE, Function, Args) end).

stop(Peer, Pids) -> on(Peer, fun() -> [exit(Pid, kill) || Pid <- Pids], ok end).

pause(Ms) -> receive after Ms -> ok end.

%% So many processes that count the bytes of binaries that they are sent.
sinks(N) ->
    Counters = counters:new(N, [write_concurrency]),
    persistent_term:put(?MODULE, {N, Counters}),
    [spawn(fun() -> sink(Counters, I) end) || I <- lists:seq(1, N)].

sink(Counters, I) ->
    receive Data -> counters:add(Counters, I, byte_size(Data)) end,
    sink(Counters, I).

%% What they count in so many milliseconds.
counted(Ms) ->
    {N, Counters} = persistent_term:get(?MODULE),
    Read = fun() -> [counters:get(Counters, I) || I <- lists:seq(1, N)] end,
    Before = Read(),
    pause(Ms),
    [Y - X || {X, Y} <- lists:zip(Before, Read())].

flood(To, Size) -> pour(To, binary:copy(<<7>>, Size)).

pour(To, Data) -> To ! Data, pour(To, Data).

%% PerMs messages in each millisecond, made up for when it is late.
paced(To, Size, PerMs) ->
    pace(To, binary:copy(<<7>>, Size), PerMs, erlang:monotonic_time(millisecond)).

pace(To, Data, PerMs, Next) ->
    Now = erlang:monotonic_time(millisecond),
    case Next =< Now of
        true -> _ = [To ! Data || _ <- lists:seq(1, PerMs)], pace(To, Data, PerMs, Next + 1);
        false -> pause(1), pace(To, Data, PerMs, Next)
    end.

%% A large question gets a small answer, the way it came.
answer(Way) ->
    receive {From, Ref, _} -> tell(Way, From, Ref, []) end,
    answer(Way).

tell(plain, To, Message, _) -> To ! Message;
tell(send, To, Message, Opts) -> ok = chatter:send(To, Message, Opts).

%% Waits for nothing but the carrier.
fill(Way, To, Size) -> fill_with(Way, To, binary:copy(<<7>>, Size)).

fill_with(Way, To, Data) ->
    tell(Way, To, Data, []),
    fill_with(Way, To, Data).

%% Round trips in microseconds of a process of a class, for so long.
asked(Way, Class, Echo, Ms) ->
    Data = binary:copy(<<7>>, 32768),
    Opts = [{priority, Class}],
    Until = erlang:monotonic_time(millisecond) + Ms,
    Self = self(),
    Ask = fun Ask(Samples) ->
                  Ref = make_ref(),
                  Began = erlang:monotonic_time(microsecond),
                  tell(Way, Echo, {self(), Ref, Data}, Opts),
                  Us = receive Ref -> erlang:monotonic_time(microsecond) - Began end,
                  case erlang:monotonic_time(millisecond) < Until of
                      true -> Ask([Us | Samples]);
                      false -> [Us | Samples]
                  end
          end,
    Pid = spawn_link(fun() ->
                             ok = chatter:set_class(self(), Opts),
                             Self ! {self(), Ask([])}
                     end),
    receive {Pid, Samples} -> Samples end.

start_echo() -> spawn(fun echo/0).

echo() ->
    receive
        {From, Ref, _} -> From ! Ref;
        _ -> ok
    end,
    echo().

burst(Echo, N) ->
    Data = binary:copy(<<7>>, 1024),
    _ = [Echo ! Data || _ <- lists:seq(1, N - 1)],
    _ = round_trip(Echo, Data),
    burst(Echo, N).

round_trip(Echo, Data) ->
    Ref = make_ref(),
    Began = erlang:monotonic_time(microsecond),
    Echo ! {self(), Ref, Data},
    receive Ref -> erlang:monotonic_time(microsecond) - Began end.

%% Round trips in microseconds of one process for each echo, for so long.
pings(Echoes, Ms) ->
    Self = self(),
    Data = binary:copy(<<7>>, 1024),
    Until = erlang:monotonic_time(millisecond) + Ms,
    Pids = [spawn_link(fun() -> Self ! {self(), ping_until(Echo, Data, Until, [])} end)
            || Echo <- Echoes],
    lists:append([receive {Pid, Samples} -> Samples end || Pid <- Pids]).

ping_until(Echo, Data, Until, Samples) ->
    Us = round_trip(Echo, Data),
    case erlang:monotonic_time(millisecond) < Until of
        true -> ping_until(Echo, Data, Until, [Us | Samples]);
        false -> [Us | Samples]
    end.

percentile(Samples, P) ->
    lists:nth(max(1, ceil(P * length(Samples))), lists:sort(Samples)).

%% So many processes that take so many times of sending each, and then tell their p99.
one_way(N, Count) -> [spawn(fun() -> arrivals(Count, []) end) || _ <- lists:seq(1, N)].

arrivals(0, Samples) ->
    receive {p99, From} -> From ! {p99, self(), percentile(Samples, 0.99)} end;
arrivals(Left, Samples) ->
    receive
        {sent, At, _} -> arrivals(Left - 1, [os:system_time(microsecond) - At | Samples])
    end.

%% Sends the time, which all nodes of a laboratory have in common, every so many milliseconds.
stamped(To, EveryMs) ->
    pause(rand:uniform(EveryMs)),
    stamp(To, EveryMs).

stamp(To, EveryMs) ->
    To ! {sent, os:system_time(microsecond), <<0:800>>},
    pause(EveryMs),
    stamp(To, EveryMs).
