%% The order of signals between each two processes (Erlang reference manual, "Delivery of
%% Signals"): signals of all kinds at random (chatter_order), and named cases; over a direct link,
%% over a relay, and over two ways of unequal length on which frames are late and out of order.
%%
%% CHATTER_SIGNALS: how many steps the senders of a random case take in all; CHATTER_SEED.
-module(chatter_order_SUITE).
-behaviour(ct_suite).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_work, [on/2, on/3]).

-define(SIGNALS, 60000).
-define(PATIENCE_MS, 20000).
-define(CALLS, 150).

suite() -> [{timetrap, {minutes, 30}}].

all() -> [{group, Group} || Group <- groups_of(settings())].

groups() ->
    Cases = [all_kinds, names_and_aliases, reply_before_down, down_after_last_message,
             exit_after_spawn_reply],
    [{Group, [], Cases} || Group <- groups_of([default, one_flow])].

groups_of(Settings) ->
    [list_to_atom(lists:concat([Network, "_", Setting]))
     || Network <- [direct, relay, uneven], Setting <- Settings].

%% With flows, and with all in one flow: what holds there must hold with flows.
settings() ->
    case lists:member(flows, chatter_config:keys()) of
        true -> [default, one_flow];
        false -> [default]
    end.

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

init_per_group(Group, Config) ->
    [Network, Setting] = string:split(atom_to_list(Group), "_"),
    Keys = case Setting of "default" -> []; "one_flow" -> [{flows, 1}] end,
    Available = case Network of "uneven" -> chatter_lab:available(); _ -> ok end,
    case Available of
        ok -> chatter_work:shared(fun() -> network(Network, #{chatter => Keys}, Config) end);
        Skip -> Skip
    end.

network("direct", Opts, Config) -> nodes_are(chatter_work:pair(Opts), Config);
network("relay", Opts, Config) ->
    Tests = #{args => ["-pa", filename:dirname(code:which(?MODULE))]},
    [A, R, B] = chatter_cluster:line(3, maps:merge(Opts, Tests)),
    _ = [chatter_work:connect(X, Y) || {X, Y} <- [{A, B}, {A, R}, {R, B}]],
    nodes_are([A, B, R], Config);
network("uneven", Opts, Config) ->
    %% 1 and 4 are joined by 2 and, slower and in disorder, by 3.
    ok = chatter_cluster:new(),
    Lab = chatter_lab:open(#{nodes => 4, network => switch, seed => 1}),
    Links = [{1, 2}, {2, 4}, {1, 3}, {3, 4}],
    Fast = chatter_lab:both([{1, 2}, {2, 4}]),
    Slow = chatter_lab:both([{1, 3}, {3, 4}]),
    ok = chatter_lab:shape(Lab, Fast, [{delay, 0.3}]),
    ok = chatter_lab:shape(Lab, Slow, [{delay, 3}, {jitter, 1}, {reorder, 5}, {loss, 0.1}]),
    Peers = [chatter_lab:start(Lab, I, Opts#{links => static,
                                             neighbours => [chatter_lab:node_name(J) || J <- Js]})
             || I <- [1, 2, 3, 4], Js <- [chatter_nemesis_plan:neighbours(I, Links)]],
    ok = chatter_cluster:await_routes(Peers, 30000),
    [A, _, _, B] = Peers,
    chatter_work:connect(A, B),
    [{lab, Lab} | nodes_are([A, B], Config)].

nodes_are(Peers, Config) -> [{peers, Peers} | Config].

end_per_group(_, Config) ->
    ok = chatter_cluster:stop_all(),
    case ?config(lab, Config) of
        undefined -> ok;
        Lab -> chatter_lab:close(Lab)
    end.

%% Given senders and receivers on all nodes that do whatever the seed says, expect the order that
%% Erlang promises between each two, every message once, and every end told once and last.
all_kinds(Config) ->
    Peers = ?config(peers, Config),
    Seed = seed(),
    Wanted = setting("CHATTER_SIGNALS", ?SIGNALS),
    %% Many short lives, as the ends are part of what is looked at.
    Each = min(1500, max(50, Wanted div (24 * length(Peers)))),
    PerRound = 24 * Each * length(Peers),
    Rounds = max(1, (Wanted + PerRound div 2) div PerRound),
    ct:pal("seed ~b: ~b rounds of ~b senders with ~b steps",
           [Seed, Rounds, 24 * length(Peers), Each]),
    Began = chatter_work:now_ms(),
    Total = lists:sum([round(Peers, {Seed, Round}, Each) || Round <- lists:seq(1, Rounds)]),
    Ms = chatter_work:now_ms() - Began,
    ct:pal("~b signals in ~b ms, ~b a second", [Total, Ms, Total * 1000 div max(1, Ms)]).

seed() -> setting("CHATTER_SEED", erlang:system_time(second) rem 1000000).

setting(Name, Default) ->
    case os:getenv(Name) of false -> Default; "" -> Default; Text -> list_to_integer(Text) end.

%% On each node six receivers, three of each mode, with four senders each, in turn on the others.
round(Peers, {Seed, Round}, Steps) ->
    _ = [ok = on(Peer, fun chatter_order:start/0) || Peer <- Peers],
    _ = [begin
             Mode = lists:nth(I rem 2 + 1, [senders_first, receiver_first]),
             Name = list_to_atom("receiver_" ++ integer_to_list(I)),
             Receiver = on(Peer, fun() -> chatter_order:receiver({Name, Mode}, 4) end),
             Others = Peers -- [Peer],
             [begin
                  From = lists:nth(J rem length(Others) + 1, Others),
                  Opts = #{seed => {Seed, Round, erlang:phash2({node_number(Peer, Peers), I, J})},
                           leads => J =:= 1},
                  on(From, fun() -> chatter_order:sender(Receiver, Steps, Opts) end)
              end || J <- [1, 2, 3, 4]]
         end || Peer <- Peers, I <- lists:seq(1, 6)],
    Outcomes = chatter_cluster:wait_until(fun() -> through(Peers) end, 120000),
    ?assertEqual([], [W || #{wrong := Ws} <- Outcomes, W <- Ws]),
    lists:sum([Signals || #{signals := Signals} <- Outcomes]).

node_number(#{node := Node}, Peers) ->
    length(lists:takewhile(fun(#{node := N}) -> N =/= Node end, Peers)).

through(Peers) ->
    Outcomes = [on(Peer, fun chatter_order:outcome/0) || Peer <- Peers],
    timer:sleep(20), % or the asking is what keeps the nodes busy
    Running = [Pid || #{running := Pids} <- Outcomes, Pid <- Pids],
    case Running =:= [] orelse [] =/= [W || #{wrong := Ws} <- Outcomes, W <- Ws] of
        true -> {ok, Outcomes};
        false -> {running, Running}
    end.

%% Given a sender that addresses one process by identifier, name, alias and the alias of a monitor
%% in turn, small and large, and then exits, while others fill the connection, expect all in order,
%% and then a DOWN from the name that was monitored.
names_and_aliases(Config) ->
    [#{node := NodeA} = A, #{node := NodeB} = B | _] = ?config(peers, Config),
    Noise = noise(A, NodeB),
    _ = [on(B, fun() -> named_order(NodeA, Round, 800) end) || Round <- [1, 2, 3, 4, 5]],
    quiet(A, Noise).

named_order(NodeA, Round, Count) ->
    Self = self(),
    Name = list_to_atom("named_order_" ++ integer_to_list(Round)),
    true = register(order_receiver, Self),
    Here = node(),
    Alias = alias(),
    Sender = spawn(NodeA, fun() ->
                                  true = register(Name, self()),
                                  Self ! {registered, self()},
                                  receive
                                      {go, OfMonitor} ->
                                          To = {Self, {order_receiver, Here}, Alias, OfMonitor},
                                          in_turn(To, 1, Count)
                                  end
                          end),
    receive {registered, Sender} -> ok after ?PATIENCE_MS -> error(not_registered) end,
    Ref = monitor(process, {Name, NodeA}),
    ByPid = monitor(process, Sender, [{alias, explicit_unalias}]),
    Sender ! {go, ByPid},
    Numbers = [receive {N, _} -> N;
                       {'DOWN', _, _, Who, Why} -> error({down_after, N - 1, Who, Why})
               after ?PATIENCE_MS -> error({missing, N})
               end || N <- lists:seq(1, Count)],
    ?assertEqual(lists:seq(1, Count), Numbers),
    _ = [receive {'DOWN', R, process, W, in_turn} -> ok
         after ?PATIENCE_MS -> error({no_down, W})
         end || {R, W} <- [{Ref, {Name, NodeA}}, {ByPid, Sender}]],
    unregister(order_receiver),
    unalias(ByPid),
    true = unalias(Alias),
    ?assertEqual({messages, []}, process_info(self(), messages)).

in_turn(_To, N, Count) when N > Count -> exit(in_turn);
in_turn(To, N, Count) ->
    Size = case N rem 50 of 0 -> 150000; 7 -> 20000; _ -> N rem 90 end,
    element(N rem 4 + 1, To) ! {N, binary:copy(<<N>>, Size)},
    in_turn(To, N + 1, Count).

%% Given a registered server that replies and exits at once, and a caller that monitors it by name,
%% as gen_server:call/2 does, expect the reply each time, and never a DOWN in its place.
reply_before_down(Config) ->
    [#{node := NodeA} = A, #{node := NodeB} = B | _] = ?config(peers, Config),
    Noise = noise(A, NodeB),
    on(A, fun() ->
                  spawn(fun() -> register(order_replier, self()), replier() end),
                  chatter_cluster:wait_until(fun() -> is_pid(whereis(order_replier)) end, 5000)
          end),
    on(B, fun() -> [call_once(NodeA, N) || N <- lists:seq(1, ?CALLS)], ok end, 200000),
    on(A, fun() -> exit(whereis(order_replier), kill) end),
    quiet(A, Noise).

%% Starts a server for each name that it is given, and says so.
replier() ->
    receive
        {serve, Name, From} ->
            Keeper = self(),
            _ = spawn(fun() ->
                              register(Name, self()),
                              Keeper ! {serving, Name},
                              receive {call, ReplyTo, Tag, Size} ->
                                      ReplyTo ! {Tag, binary:copy(<<1>>, Size)}
                              end
                      end),
            receive {serving, Name} -> From ! {serving, Name} end,
            replier()
    end.

call_once(Node, N) ->
    Name = list_to_atom("order_server_" ++ integer_to_list(N rem 7)),
    {order_replier, Node} ! {serve, Name, self()},
    receive {serving, Name} -> ok after ?PATIENCE_MS -> error({not_serving, Name}) end,
    Ref = monitor(process, {Name, Node}, [{alias, reply_demonitor}]),
    ReplyTo = case N rem 2 of 0 -> Ref; 1 -> self() end,
    Size = case N rem 20 of 0 -> 100000; _ -> 10 end,
    {Name, Node} ! {call, ReplyTo, Ref, Size},
    receive
        {Ref, Reply} -> ?assertEqual(Size, byte_size(Reply));
        {'DOWN', Ref, process, Who, Why} -> error({down_before_reply, N, Who, Why})
    after ?PATIENCE_MS -> error({no_reply, N})
    end,
    N rem 2 =:= 1 andalso begin
                              receive {'DOWN', Ref, process, {Name, Node}, normal} -> ok
                              after ?PATIENCE_MS -> error({no_down, N})
                              end
                          end,
    gone(Node, Name).

%% Only so that the name is free: by a process of that node.
gone(Node, Name) ->
    case erpc:call(Node, erlang, whereis, [Name]) of
        undefined -> ok;
        Pid -> _ = erpc:call(Node, erlang, is_process_alive, [Pid]), gone(Node, Name)
    end.

%% Given many processes that send a few messages each to one that monitors them by identifier and
%% by name, and exit at once, expect each DOWN after the last message of its process.
down_after_last_message(Config) ->
    [#{node := NodeA} = A, #{node := NodeB} = B | _] = ?config(peers, Config),
    Noise = noise(A, NodeB),
    on(B, fun() -> downs(NodeA, 300) end),
    quiet(A, Noise).

downs(NodeA, Count) ->
    Self = self(),
    true = register(order_receiver, Self),
    To = {Self, {order_receiver, node()}},
    Senders = [begin
                   Name = list_to_atom("order_down_" ++ integer_to_list(I)),
                   Pid = spawn(NodeA, fun() ->
                                              register(Name, self()),
                                              Self ! {registered, self()},
                                              receive go -> few(To, I) end
                                      end),
                   {I, Pid, {Name, NodeA}}
               end || I <- lists:seq(1, Count)],
    _ = [receive {registered, Pid} -> ok after ?PATIENCE_MS -> error(not_registered) end
         || {_, Pid, _} <- Senders],
    Refs = maps:from_list(lists:append([[{monitor(process, Pid), I}, {monitor(process, Name), I}]
                                        || {I, Pid, Name} <- Senders])),
    _ = [Pid ! go || {_, Pid, _} <- Senders],
    ends(Refs, maps:from_keys(lists:seq(1, Count), 0)),
    unregister(order_receiver).

few(To, I) ->
    _ = [element((N + I) rem 2 + 1, To) ! {I, N, binary:copy(<<N>>, (I * N rem 41) * 4000)}
         || N <- lists:seq(1, I rem 5)],
    exit({few, I rem 5}).

ends(Refs, _Counts) when Refs =:= #{} ->
    ?assertEqual({messages, []}, process_info(self(), messages));
ends(Refs, Counts) ->
    receive
        {I, N, _} ->
            ?assertEqual({I, maps:get(I, Counts) + 1}, {I, N}),
            ends(Refs, Counts#{I := N});
        {'DOWN', Ref, process, Who, {few, Count}} ->
            #{Ref := I} = Refs,
            ?assertEqual({Who, Count}, {Who, maps:get(I, Counts)}),
            ends(maps:remove(Ref, Refs), Counts)
    after ?PATIENCE_MS -> error({not_ended, Refs})
    end.

%% Given processes that are started with a link, a monitor or both, send a message or none, and exit
%% at once, expect for each the reply first, then the messages, then the ends, none missing.
exit_after_spawn_reply(Config) ->
    [A, #{node := NodeB} | _] = ?config(peers, Config),
    Noise = noise(A, NodeB),
    on(A, fun() ->
                  process_flag(trap_exit, true),
                  [started(NodeB, Batch) || Batch <- lists:seq(1, 40)], ok
          end),
    quiet(A, Noise).

started(NodeB, Batch) ->
    Self = self(),
    Requests =
        maps:from_list(
          [begin
               Messages = [{from_child, N} || N <- lists:seq(1, I rem 3)],
               Child = fun() ->
                               _ = [Self ! {self(), M} || M <- Messages],
                               exit({child, binary:copy(<<1>>, I rem 10 div 9 * 90000)})
                       end,
               Id = spawn_request(NodeB, Child, [{reply_tag, started} | Options]),
               {Id, [reply] ++ Messages ++ [length(Options)]}
           end || I <- lists:seq(Batch, Batch + 29),
                  Options <- [[link], [monitor], [link, monitor]]]),
    followed(Requests, #{}).

%% What is still to come, by request; which request a process is of.
followed(Requests, _Pids) when Requests =:= #{} ->
    ?assertEqual({messages, []}, process_info(self(), messages));
followed(Requests, Pids) ->
    receive
        {started, Id, ok, Pid} ->
            #{Id := [reply | Rest]} = Requests,
            followed(Requests#{Id := Rest}, Pids#{Pid => Id});
        {Pid, {from_child, _} = M} when is_map_key(Pid, Pids) ->
            #{Pid := Id} = Pids,
            #{Id := [M | Rest]} = Requests,
            followed(Requests#{Id := Rest}, Pids);
        {'EXIT', Pid, {child, _}} when is_map_key(Pid, Pids) ->
            followed(ended(maps:get(Pid, Pids), Requests), Pids);
        {'DOWN', Id, process, Pid, {child, _}} when is_map_key(Pid, Pids) ->
            followed(ended(Id, Requests), Pids);
        Other ->
            error({before_its_reply, Other})
    after ?PATIENCE_MS -> error({missing, Requests})
    end.

ended(Id, Requests) ->
    case Requests of
        #{Id := [1]} -> maps:remove(Id, Requests);
        #{Id := [Left]} when is_integer(Left) -> Requests#{Id := [Left - 1]}
    end.

%%% Noise: processes that keep the connection full in both directions

noise(A, NodeB) ->
    Pids = on(A, fun() ->
                         [begin
                              Echo = spawn(NodeB, fun echo/0),
                              spawn(fun() -> make_noise(Echo, Size) end)
                          end || Size <- [100, 3000, 150000, 800000]]
                 end),
    Pids.

echo() ->
    receive
        {From, Data} -> From ! {self(), Data}, echo();
        stop -> ok
    end.

make_noise(Echo, Size) ->
    %% Each with atoms that are new to the cache now and then.
    Atom = list_to_atom("order_noise_" ++ integer_to_list(rand:uniform(3000))),
    Echo ! {self(), {Atom, binary:copy(<<0>>, Size)}},
    receive
        {Echo, _} -> make_noise(Echo, Size);
        {stop, From} -> Echo ! stop, From ! {stopped, self()}
    end.

quiet(A, Pids) ->
    on(A, fun() ->
                  [Pid ! {stop, self()} || Pid <- Pids],
                  [receive {stopped, Pid} -> ok after ?PATIENCE_MS -> error(noise_hangs) end
                   || Pid <- Pids],
                  ok
          end).
