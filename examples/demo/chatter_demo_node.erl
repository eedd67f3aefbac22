%% What the demo runs on its nodes. Plain OTP but for call_there/1 and send_there/1: nothing else
%% here knows that the other node is four links away, or calls Chatter.
-module(chatter_demo_node).

-export([spawn_there/1, link_there/1, monitor_there/1, rpc_there/1, global_there/1]).
-export([pg_there/1, large/2, small/2, call_there/1, send_there/1, answer/0, answer_loop/0]).
-export([whoami/1, wait/0, obey/0, digest/1, in_order/2, register_here/1, join_here/2]).

-define(TIMEOUT_MS, 30000).
-define(MIB, 1048576).

%% A function called there, and what it raises, with neither node connected to the other.
call_there(Node) ->
    Sum = chatter:call(Node, lists, sum, [lists:seq(1, 1000)], ?TIMEOUT_MS),
    Caught = try chatter:call(Node, erlang, error, [as_it_should], ?TIMEOUT_MS)
             catch error:{exception, Reason, _} -> Reason
             end,
    {ok, "1 + ... + 1000 = ~p, error carried: ~p, connected nodes: ~p",
     [Sum, Caught, nodes(connected)]}.

%% A message to a name there, and one back to a process here.
send_there(Node) ->
    Pid = chatter:call(Node, ?MODULE, answer, [], ?TIMEOUT_MS),
    ok = chatter:send({chatter_demo_answer, Node}, {self(), hello}, [{priority, high}]),
    receive {Pid, hello} -> {ok, "~p answered, connected nodes: ~p", [Pid, nodes(connected)]}
    after ?TIMEOUT_MS -> {error, no_answer}
    end.

answer() ->
    Pid = spawn(?MODULE, answer_loop, []),
    true = register(chatter_demo_answer, Pid),
    Pid.

answer_loop() ->
    receive {From, Message} -> ok = chatter:send(From, {self(), Message}, []) end.

%% spawn/4 on the other node, and its answer.
spawn_there(Node) ->
    Pid = spawn(Node, ?MODULE, whoami, [self()]),
    receive {Pid, Node} -> {ok, "~p runs on ~p", [Pid, node(Pid)]}
    after ?TIMEOUT_MS -> {error, no_answer}
    end.

%% A link across the network: the process there exits, the signal comes here.
link_there(Node) ->
    Old = process_flag(trap_exit, true),
    Pid = spawn_link(Node, ?MODULE, obey, []),
    Pid ! {exit, the_demo_says_so},
    Result = receive
                 {'EXIT', Pid, the_demo_says_so = Why} -> {ok, "exit signal arrived: ~p", [Why]}
             after ?TIMEOUT_MS -> {error, no_exit_signal}
             end,
    true = process_flag(trap_exit, Old),
    Result.

%% A monitor by pid: the process there is killed from here, DOWN comes back.
monitor_there(Node) ->
    Pid = spawn(Node, ?MODULE, wait, []),
    Ref = erlang:monitor(process, Pid),
    exit(Pid, kill),
    receive {'DOWN', Ref, process, Pid, killed = Why} -> {ok, "DOWN arrived: ~p", [Why]}
    after ?TIMEOUT_MS -> {error, no_down}
    end.

rpc_there(Node) ->
    Node = rpc:call(Node, erlang, node, [], ?TIMEOUT_MS),
    Sum = erpc:call(Node, lists, sum, [lists:seq(1, 1000)], ?TIMEOUT_MS),
    Caught = try erpc:call(Node, erlang, error, [as_it_should], ?TIMEOUT_MS)
             catch error:{exception, Reason, _} -> Reason
             end,
    {ok, "rpc: ~p, erpc: 1 + ... + 1000 = ~p, error carried: ~p", [Node, Sum, Caught]}.

%% A name registered there, seen here.
global_there(Node) ->
    Pid = erpc:call(Node, ?MODULE, register_here, [chatter_demo_name], ?TIMEOUT_MS),
    ok = global:sync(),
    Pid = global:whereis_name(chatter_demo_name),
    ok = global:unregister_name(chatter_demo_name),
    {ok, "whereis_name gives ~p on ~p", [Pid, node(Pid)]}.

%% A process of each of the two nodes in one group.
pg_there(Node) ->
    Here = join_here(demo_group, start),
    There = erpc:call(Node, ?MODULE, join_here, [demo_group, start], ?TIMEOUT_MS),
    Both = lists:sort([Here, There]),
    chatter_cluster:wait_until(fun() -> Both =:= lists:sort(pg:get_members(demo_group)) end,
                               ?TIMEOUT_MS),
    {ok, "get_members gives ~p", [Both]}.

%% One message of so many MiB; the other end answers with what it got.
large(Node, MiB) ->
    Data = rand:bytes(MiB * ?MIB),
    Pid = spawn(Node, ?MODULE, digest, [self()]),
    Began = erlang:monotonic_time(microsecond),
    Pid ! {data, Data},
    ok = receive {Pid, arrived} -> ok after ?TIMEOUT_MS -> no_answer end,
    Us = erlang:monotonic_time(microsecond) - Began,
    Got = receive {Pid, Digest} -> Digest after ?TIMEOUT_MS -> no_answer end,
    case digest_of(Data) of
        Got -> {ok, "~b MiB arrived whole (MD5 ~s), ~.1f MB/s",
                [MiB, binary:encode_hex(Got), byte_size(Data) / Us]};
        Sent -> {error, {sent, Sent, got, Got}}
    end.

%% So many messages, counted from 1; the other end gives up at the first one out of order.
small(Node, N) ->
    Pid = spawn(Node, ?MODULE, in_order, [self(), N]),
    Began = erlang:monotonic_time(microsecond),
    ok = count_to(Pid, 1, N),
    Got = receive {Pid, Answer} -> Answer after ?TIMEOUT_MS -> no_answer end,
    Us = erlang:monotonic_time(microsecond) - Began,
    case Got of
        all_in_order -> {ok, "~b messages, each in its place, ~b per second",
                         [N, round(N * 1.0e6 / Us)]};
        Other -> {error, Other}
    end.

count_to(_, I, N) when I > N -> ok;
count_to(Pid, I, N) -> Pid ! {I, <<"a message of the size that most messages have">>},
                       count_to(Pid, I + 1, N).

%%% On the other node

whoami(From) -> From ! {self(), node()}.

wait() -> receive after infinity -> ok end.

obey() -> receive {exit, Reason} -> exit(Reason) end.

digest(From) ->
    receive {data, Data} -> From ! {self(), arrived}, From ! {self(), digest_of(Data)} end.

digest_of(Data) -> erlang:md5(Data).

in_order(From, N) -> From ! {self(), in_order(1, N, N)}.

in_order(_, 0, _) -> all_in_order;
in_order(I, Left, N) ->
    receive
        {I, _} -> in_order(I + 1, Left - 1, N);
        {Other, _} -> {expected, I, got, Other}
    end.

register_here(Name) ->
    Pid = spawn(?MODULE, wait, []),
    yes = global:register_name(Name, Pid),
    Pid.

join_here(Group, start) ->
    %% Whoever calls is gone soon, and a scope ends with the process it is linked to.
    Me = self(),
    spawn(fun() ->
                  _ = pg:start_link(),
                  Pid = spawn(?MODULE, wait, []),
                  ok = pg:join(Group, Pid),
                  Me ! {joined, Pid},
                  wait()
          end),
    receive {joined, Pid} -> Pid after ?TIMEOUT_MS -> error(not_joined) end.
