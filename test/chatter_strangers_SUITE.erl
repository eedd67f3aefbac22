%% Strangers at the port of a node that has a live link: whatever they send, no atom is made,
%% nothing crashes, memory stays bounded, the live link does not notice, and one line names
%% their address. Each case comes from an address of its own (127.0.0.N), because lines are
%% limited per address.
-module(chatter_strangers_SUITE).
-behaviour(ct_suite).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_work, [on/2, start/2]).
-import(chatter_cluster, [wait_until/2]).

-define(TIMEOUT_MS, 10000).
-define(HANDSHAKE_MS, 500).
-define(H1_LEN, 80).
-define(OTHER_KEY, "9e0b7c41d2f3a5968778695a4b3c2d1e0f1a2b3c4d5e6f708192a3b4c5d6e7f1").

suite() -> [{timetrap, {seconds, 60}}].

all() -> [{group, live}].

groups() ->
    [{live, [], [garbage, half_a_handshake, other_version, other_cluster, bad_mac, recording,
                 slow_drip, silence, wrong_key, encryption_mismatch, ten_thousand_connections]}].

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

init_per_group(live, Config) ->
    Port = chatter_cluster:free_port(),
    Opts = #{args => ["-connect_all", "false"],
             chatter => [{my_port, Port}, {handshake_timeout_ms, ?HANDSHAKE_MS}]},
    [A, #{node := NodeB} = B] =
        chatter_work:shared(fun() -> [start(a, Opts), start(b, maps:remove(chatter, Opts))]
                                end),
    chatter_work:connect(A, B),
    ok = chatter_work:watch(A),
    H1 = recorded_h1(A),
    on(A, fun() ->
                  Self = self(),
                  spawn(fun() -> register(said, self()), Self ! ready, keep([]) end),
                  receive ready -> ok end,
                  ok = logger:add_handler(?MODULE, ?MODULE, #{}),
                  logger:warning("warms ~ts up", ["the formatter"]),
                  spawn(fun() -> register(pinger, self()),
                                 ping(spawn(NodeB, fun pong/0), []) end),
                  ok
          end),
    [{port, Port}, {h1, H1}, {live, [A, B]} | Config].

end_per_group(live, _Config) -> chatter_cluster:stop_all().

%%% What strangers send

%% Given bytes of other protocols, and at random, of any length, expect them to be cut off.
garbage(Config) ->
    undisturbed(Config, 11, "does not speak Chatter", fun(Connect) ->
        [begin
             Socket = Connect(),
             _ = gen_tcp:send(Socket, Bytes),
             closed(Socket)
         end || Bytes <- [binary:copy(<<"GET / HTTP/1.1\r\nHost: x\r\n">>, 10), rand:bytes(80),
                          <<0:8000>>, rand:bytes(1000000), <<"CHT2", 0:800>>, rand:bytes(81)]]
    end).

%% Given the first part of a handshake, and then the end of the connection or nothing more,
%% expect the connection to be forgotten.
half_a_handshake(Config) ->
    H1 = ?config(h1, Config),
    undisturbed(Config, 12, at_most_one, fun(Connect) ->
        Sockets = [begin
                       Socket = Connect(),
                       ok = gen_tcp:send(Socket, binary:part(H1, 0, Len)),
                       Len rem 2 =:= 0 andalso gen_tcp:shutdown(Socket, write),
                       Socket
                   end || Len <- lists:seq(0, ?H1_LEN - 1)],
        lists:foreach(fun closed/1, Sockets)
    end).

%% Given another version of the protocol, expect a line that says so.
other_version(Config) ->
    <<Magic:4/binary, _, Rest/binary>> = ?config(h1, Config),
    refused(Config, 13, "link version 99", <<Magic/binary, 99, Rest/binary>>).

%% Given another cluster tag, expect a line that says so.
other_cluster(Config) ->
    <<Front:8/binary, Tag:64, Rest/binary>> = ?config(h1, Config),
    refused(Config, 14, "another cluster or has another key",
            <<Front/binary, (Tag bxor 1):64, Rest/binary>>).

%% Given the tag of this cluster and a wrong MAC, wherever a bit was turned, expect a line that
%% says so, and no answer.
bad_mac(Config) ->
    H1 = ?config(h1, Config),
    Turned = [begin
                  <<Before:At/binary, Byte, After/binary>> = H1,
                  <<Before/binary, (Byte bxor 16#80), After/binary>>
              end || At <- lists:seq(16, ?H1_LEN - 1)],
    undisturbed(Config, 15, "not proved our key", fun(Connect) ->
        [begin
             Socket = Connect(),
             ok = gen_tcp:send(Socket, Bytes),
             ?assertEqual(<<>>, closed(Socket))
         end || Bytes <- Turned]
    end).

%% Given a recorded, valid first message, then invented ones, expect no link.
recording(Config) ->
    H1 = ?config(h1, Config),
    undisturbed(Config, 16, "handshake", fun(Connect) ->
        [begin
             Socket = Connect(),
             ok = gen_tcp:send(Socket, H1),
             {ok, <<Len:16>>} = gen_tcp:recv(Socket, 2, ?TIMEOUT_MS),
             {ok, _} = gen_tcp:recv(Socket, Len, ?TIMEOUT_MS),
             ok = gen_tcp:send(Socket, H3),
             ?assertEqual(<<>>, closed(Socket))
         end || H3 <- [rand:bytes(100), <<0:8000>>, <<16#ff:8000>>, <<3, 0, 0, 64, 0:512>>,
                       <<64:24, 3, 0:512>>, <<0, 3, 0, 64, 0:512>>]]
    end).

%% Given one byte at a time, expect an end after handshake_timeout_ms in all.
slow_drip(Config) ->
    H1 = ?config(h1, Config),
    undisturbed(Config, 17, "handshake_timeout_ms", fun(Connect) ->
        Socket = Connect(),
        Before = chatter_work:now_ms(),
        drip(Socket, H1),
        Lasted = chatter_work:now_ms() - Before,
        ct:pal("cut off after ~b ms", [Lasted]),
        ?assert(Lasted >= ?HANDSHAKE_MS - 100 andalso Lasted < ?HANDSHAKE_MS + 1500)
    end).

%% Given connections that say nothing, expect the same end.
silence(Config) ->
    undisturbed(Config, 18, "handshake_timeout_ms", fun(Connect) ->
        lists:foreach(fun closed/1, [Connect() || _ <- lists:seq(1, 100)])
    end).

%% Given a node with another key, expect no link, and one line.
wrong_key(Config) ->
    stranger(Config, {"127.0.0.1", "127\\.0\\.0\\.1:"}, {key, ?OTHER_KEY}, "has another key").

%% Given a node with encryption off, expect the same.
encryption_mismatch(Config) ->
    stranger(Config, {"::1", "\\[::1\\]"}, {encryption, false}, "encryption").

%% Given 10,000 connections, 500 at a time, expect the same, and a node of ours to link and to
%% connect during the flood.
ten_thousand_connections(Config) ->
    [A, _] = ?config(live, Config),
    Port = ?config(port, Config),
    undisturbed(Config, 19, "refused|does not speak", fun(Connect) ->
        Flood = spawn_link(fun() -> flood(Connect, 0) end),
        C = start(c, #{links => static, neighbours => [{"127.0.0.1", Port}],
                       args => ["-connect_all", "false"]}),
        chatter_work:connect(C, A),
        Flood ! {go_on_to, 10000, self()},
        receive flooded -> ok end,
        chatter_work:disconnect(C, A),
        ok = chatter_cluster:stop(C)
    end),
    #{evicted_handshakes := Evicted} = on(A, fun chatter:info/0),
    ?assert(Evicted > 0).

%%% Helpers

refused(Config, N, Pattern, Bytes) ->
    undisturbed(Config, N, Pattern, fun(Connect) ->
        [begin
             Socket = Connect(),
             ok = gen_tcp:send(Socket, Bytes),
             ?assertEqual(<<>>, closed(Socket))
         end || _ <- lists:seq(1, 20)]
    end).

stranger(Config, {Host, Shown}, Key, Pattern) ->
    [A, _] = ?config(live, Config),
    Port = ?config(port, Config),
    #{refused_connections := Before} = on(A, fun chatter:info/0),
    undisturbed(Config, Shown, Pattern, fun(_) ->
        D = start(d, #{links => static, neighbours => [{Host, Port}],
                       chatter => [Key, {reconnect_max_ms, 100}, {unix_sockets, false}]}),
        wait_until(fun() -> #{refused_connections := N} = on(A, fun chatter:info/0),
                            N >= Before + 5 orelse N end, ?TIMEOUT_MS),
        ?assertEqual({[], []}, on(D, fun() -> {chatter:neighbours(), chatter:nodes()} end)),
        ok = chatter_cluster:stop(D)
    end).

%% Runs Strangers, who come from 127.0.0.N, and checks all that must not have happened.
undisturbed(Config, N, Pattern, Strangers) ->
    [#{node := _} = A, #{node := NodeB}] = ?config(live, Config),
    Port = ?config(port, Config),
    Source = if is_integer(N) -> {127, 0, 0, N}; true -> {127, 0, 0, 1} end,
    Shown = if is_integer(N) -> "127\\.0\\.0\\." ++ integer_to_list(N) ++ ":"; true -> N end,
    Connect = fun() ->
                      {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port,
                                                     [binary, {active, false}, {ip, Source}],
                                                     ?TIMEOUT_MS),
                      Socket
              end,
    _ = look(A), % what is loaded for this makes atoms once
    #{atoms := Atoms} = look(A),
    Rss = chatter_work:rss(A),
    _ = on(A, fun take_pings/0),
    _ = Strangers(Connect),
    Pings = lists:sort(on(A, fun take_pings/0)),
    P99 = lists:nth(max(1, length(Pings) * 99 div 100), Pings),
    Grown = chatter_work:rss(A) - Rss,
    Lines = wait_until(fun() ->
                               Found = [L || L <- on(A, fun said/0), match(L, Shown)],
                               case Found of
                                   [] when Pattern =/= at_most_one -> none;
                                   _ -> {ok, Found}
                               end
                       end, ?TIMEOUT_MS),
    ct:pal("~b pings, p99 ~b us, longest ~b us; ~b MiB more; logged: ~tp",
           [length(Pings), P99, lists:last(Pings), Grown, Lines]),
    #{atoms := AtomsAfter, nodes := Nodes} = look(A),
    Linking = is_list(N) orelse N =:= 19, % nodes of ours came by, with names
    Linking orelse ?assertEqual(Atoms, AtomsAfter),
    ?assert(lists:member(NodeB, Nodes)),
    ?assert(Grown < 64),
    ?assert(P99 < 200000),
    ?assert(length(Lines) =< 1),
    [?assert(match(Line, Pattern)) || is_list(Pattern), Line <- Lines],
    ?assertEqual([], [E || {nodedown, Node, _} = E <- chatter_work:events(A), Node =:= NodeB]).

match(Line, Pattern) -> match =:= re:run(Line, Pattern, [{capture, none}]).

look(Peer) ->
    on(Peer, fun() -> #{atoms => erlang:system_info(atom_count), nodes => nodes()} end).

%% Reads until the other end closes; what was read.
closed(Socket) ->
    case gen_tcp:recv(Socket, 0, ?TIMEOUT_MS) of
        {ok, Bytes} -> <<Bytes/binary, (closed(Socket))/binary>>;
        {error, timeout} -> error(still_open);
        {error, _} -> ok = gen_tcp:close(Socket), <<>>
    end.

drip(Socket, <<Byte, Rest/binary>>) ->
    case gen_tcp:send(Socket, <<Byte>>) of
        ok ->
            case gen_tcp:recv(Socket, 0, 50) of
                {error, timeout} -> drip(Socket, Rest);
                {error, _} -> gen_tcp:close(Socket)
            end;
        {error, _} -> gen_tcp:close(Socket)
    end.

flood(Connect, Count) ->
    Sockets = [Connect() || _ <- lists:seq(1, 500)],
    [gen_tcp:send(S, <<"CHT1", 2>>) || S <- Sockets],
    _ = gen_tcp:send(lists:last(Sockets), <<0:800>>),
    lists:foreach(fun gen_tcp:close/1, Sockets),
    receive {go_on_to, Total, From} -> flood(Connect, Count + 500, Total, From)
    after 0 -> flood(Connect, Count + 500)
    end.

flood(_Connect, Count, Total, From) when Count >= Total -> From ! flooded;
flood(Connect, Before, Total, From) ->
    self() ! {go_on_to, Total, From},
    flood(Connect, Before).

%% The first message of the handshake, as A sends it to whoever listens where it dials.
recorded_h1(A) ->
    {ok, Listen} = gen_tcp:listen(0, [binary, {active, false}, {ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Listen),
    ok = on(A, fun() -> chatter:connect({"127.0.0.1", Port}) end),
    {ok, Socket} = gen_tcp:accept(Listen, ?TIMEOUT_MS),
    {ok, <<"CHT1", _/binary>> = H1} = gen_tcp:recv(Socket, ?H1_LEN, ?TIMEOUT_MS),
    ok = on(A, fun() -> chatter:disconnect({"127.0.0.1", Port}) end),
    ok = gen_tcp:close(Socket),
    ok = gen_tcp:close(Listen),
    H1.

%%% What runs on the nodes

pong() -> receive {From, Ref} -> From ! {pong, Ref} end, pong().

%% Round trips in microseconds, one every other millisecond, kept until they are taken.
ping(Peer, Kept) ->
    Ref = make_ref(),
    Before = erlang:monotonic_time(microsecond),
    Peer ! {self(), Ref},
    receive {pong, Ref} -> ok end,
    Took = erlang:monotonic_time(microsecond) - Before,
    receive {take, From} -> From ! {taken, [Took | Kept]}, ping(Peer, [])
    after 2 -> ping(Peer, [Took | Kept])
    end.

take_pings() -> pinger ! {take, self()}, receive {taken, Pings} -> Pings end.

said() -> said ! {tell, self()}, receive {told, Lines} -> Lines end.

keep(Lines) ->
    receive
        {line, Line} -> keep([Line | Lines]);
        {tell, From} -> From ! {told, Lines}, keep(Lines)
    end.

%% The logger handler.
log(Event, _Config) ->
    Line = logger_formatter:format(Event, #{single_line => true, template => [msg]}),
    said ! {line, unicode:characters_to_list(Line)}.
