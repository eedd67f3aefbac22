%% Frames as a real VM encodes them, of every operation that it has (erl_dist_protocol), with
%% and without the cache of atoms, fragments and the capabilities of later releases. What the
%% test knows of each (who sent it, whether it may be lost) is written to a file, which
%% native/chatter-core/tests/flow_frames.rs compares with what the reader of frames finds. The
%% file of one run is kept beside that test: flow_frames.txt.
-module(chatter_frames_SUITE).
-behaviour(ct_suite).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_work, [on/2]).

-define(MESSAGES, [6, 16, 22, 23, 33, 34]).

%% Of a frame: the control message ends before this, and the reader looks no further.
-define(KEPT, 250).

suite() -> [{timetrap, {minutes, 5}}].

all() -> [every_operation].

init_per_suite(Config) -> Config.

end_per_suite(_Config) -> chatter_cluster:stop_all().

%% Given a VM that sends every operation to peers of four ages, expect the reader to find the
%% sender of each frame, or that it is a fence.
every_operation(Config) ->
    Port = chatter_cluster:free_port(),
    Limits = ["-kernel", "inet_dist_listen_min", integer_to_list(Port),
              "inet_dist_listen_max", integer_to_list(Port)],
    Vm = chatter_work:start(vm, #{carrier => stock, args => Limits}),
    New = [send_sender, exit_payload, unlink_id, spawn, alias],
    Kinds = [{"cache", [atom_cache, fragments | New], fun new_signals/2},
             {"no cache", [fragments | New], fun new_signals/2},
             {"pass through", New, fun new_signals/2},
             {"old, cache", [atom_cache], fun old_signals/2},
             {"old", [], fun old_signals/2}],
    {Lines, Seen} = lists:unzip([connection(Vm, Port, Kind) || Kind <- Kinds]),
    %% All but EXIT2_TT (18) and its form with a payload (27): exit/2 takes no token along. And
    %% ALTACT_SIG_SEND (37), which OTP 28 brought.
    ?assertEqual(([1, 2, 3, 4, 6, 7, 8, 12, 13, 16] ++ lists:seq(19, 36)) -- [27],
                 lists:usort(lists:append(Seen))),
    File = filename:join(?config(priv_dir, Config), "flow_frames.txt"),
    ok = file:write_file(File, Lines),
    {Code, Output} = chatter_cluster:run(
                       "sh", ["-c", "PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin exec cargo test "
                              "--locked --quiet --workspace --test flow_frames"],
                       280000, #{cd => chatter_cluster:root(), env => [{"CHATTER_FRAMES", File}]}),
    ct:log("~ts", [Output]),
    ?assertEqual({0, match}, {Code, re:run(Output, "1 passed", [{capture, none}])}).

connection(Vm, Port, {Title, Capabilities, Signals}) ->
    Name = "raw" ++ integer_to_list(erlang:unique_integer([positive])) ++ "@127.0.0.1",
    Raw = chatter_raw_peer:connect({Port, chatter_cluster:cookie()}, Name, Capabilities),
    Steps = Signals(Vm, Raw),
    {Lines, Operations} = lists:unzip([step(Vm, Raw, Step) || Step <- Steps]),
    chatter_raw_peer:close(Raw),
    {["connection\t", Title, $\n, Lines], lists:append(Operations)}.

%% A step: what the peer sends first, then what a new process of the VM does, then the signals
%% that come of it. Twice, so that the second time its atoms are in the cache.
step(Vm, Raw, {Title, Sent, Fun, Expected}) ->
    {First, Operations} = once(Vm, Raw, {Title, Sent, Fun, Expected}),
    {Second, Operations} = once(Vm, Raw, {Title ++ ", again", Sent, Fun, Expected}),
    {[First, Second], Operations}.

once(Vm, Raw, {Title, Sent, Fun, Expected}) ->
    ct:log("~ts", [Title]),
    Sender = on(Vm, fun() -> spawn(fun sender/0) end),
    Sent(Sender),
    Others = on(Vm, fun() -> ask(Sender, Fun) end),
    {[begin
          Frames = [Frame | _] = chatter_raw_peer:signal(Raw),
          ?assertEqual({Title, Operation}, {Title, chatter_raw_peer:operation(Frame)}),
          From = case Who of sender -> Sender; none -> none; child -> Others end,
          [line(Title, From, Operation, F) || F <- Frames]
      end || {Operation, Who} <- Expected],
     [Operation || {Operation, _} <- Expected]}.

line(Title, From, Operation, Frame) ->
    IsFence = From =:= none orelse chatter_raw_peer:updates(Frame),
    IsWhole = case Frame of <<131, Kind, _/binary>> -> Kind =:= $D; <<112, _/binary>> -> true end,
    Droppable = IsWhole andalso not IsFence andalso lists:member(Operation, ?MESSAGES),
    Most = case Frame of <<131, $F, _/binary>> -> 40; _ -> ?KEPT end,
    Kept = binary:part(Frame, 0, min(Most, byte_size(Frame))),
    [Title, $\t, case IsFence of true -> "fence"; false -> key(From) end, $\t,
     atom_to_list(Droppable), $\t, binary:encode_hex(Kept), $\n].

%% ID and serial of a process, in hexadecimal.
key(Pid) ->
    <<131, 88, _/binary>> = Term = term_to_binary(Pid),
    binary:encode_hex(binary:part(Term, byte_size(Term) - 12, 8)).

%% On the VM: does what it is told, and answers unless that ends it.
sender() ->
    receive {do, From, Fun} -> From ! {done, self(), Fun()}, sender() end.

ask(Sender, Fun) ->
    Ref = monitor(process, Sender),
    Sender ! {do, self(), Fun},
    receive
        {done, Sender, Answer} -> demonitor(Ref, [flush]), Answer;
        {'DOWN', Ref, process, Sender, _} -> ended
    end.

traced() -> seq_trace:set_token(label, 7).

%% What the peer asks a VM to start: shows its identifier to whoever asks.
child() -> register(chatter_child, self()), receive stop -> ok end.

await_child() ->
    case whereis(chatter_child) of
        undefined -> timer:sleep(1), await_child();
        Pid -> Pid ! stop, gone(Pid)
    end.

gone(Pid) ->
    case whereis(chatter_child) of Pid -> timer:sleep(1), gone(Pid); _ -> Pid end.

%%% What a VM of today sends to one of today

new_signals(Vm, Raw) ->
    Token = [{Title ++ ", traced", Sent, fun() -> traced(), Do() end, traced(Expected)}
             || {Title, Sent, Do, Expected} <- traceable(Vm, Raw)],
    traceable(Vm, Raw) ++ Token ++ common(Vm, Raw) ++ replies(Vm, Raw).

traced(Expected) ->
    [{case Operation of
          6 -> 16; 22 -> 23; 24 -> 25; 29 -> 30; 33 -> 34; 3 -> 13; 2 -> 12;
          _ -> Operation
      end, Who} || {Operation, Who} <- Expected].

traceable(_Vm, Raw) ->
    Pid = chatter_raw_peer:pid(Raw, 1),
    Alias = chatter_raw_peer:reference(Raw, 1),
    Node = chatter_raw_peer:node_name(Raw),
    Large = {large, chatter_work:pattern(200000)},
    Nothing = fun(_) -> ok end,
    lists:append(
      [[{"to a process" ++ Size, Nothing, fun() -> Pid ! Message end, [{22, sender}]},
        {"to a name" ++ Size, Nothing, fun() -> {a_name, Node} ! Message end, [{6, sender}]},
        {"to an alias" ++ Size, Nothing, fun() -> Alias ! Message end, [{33, sender}]},
        {"exit/2" ++ Size, Nothing, fun() -> exit(Pid, Message) end, [{26, sender}]},
        {"exit of a linked process" ++ Size, Nothing, fun() -> link(Pid), exit(Message) end,
         [{1, sender}, {24, sender}]},
        {"spawn_request" ++ Size, Nothing,
         fun() -> spawn_request(Node, lists, reverse, [[Message]], []) end, [{29, sender}]}]
       || {Size, Message} <- [{"", {hello, 1}}, {", large", Large}]]).

%% What does not carry a token.
common(_Vm, Raw) ->
    Pid = chatter_raw_peer:pid(Raw, 1),
    Node = chatter_raw_peer:node_name(Raw),
    Nothing = fun(_) -> ok end,
    [{"link and unlink", Nothing, fun() -> link(Pid), unlink(Pid) end,
      [{1, sender}, {35, sender}]},
     {"monitor and demonitor", Nothing, fun() -> demonitor(monitor(process, Pid)) end,
      [{19, sender}, {20, sender}]},
     {"the same by name", Nothing, fun() -> demonitor(monitor(process, {a_name, Node})) end,
      [{19, sender}, {20, sender}]},
     {"group_leader/2", Nothing, fun() -> group_leader(self(), Pid) end, [{7, none}]}].

%% What a VM sends because of what the peer has sent.
replies(Vm, Raw) ->
    Pid = chatter_raw_peer:pid(Raw, 1),
    Ref = chatter_raw_peer:reference(Raw, 1),
    Send = fun(Control) -> chatter_raw_peer:send(Raw, Control) end,
    Leader = on(Vm, fun() -> whereis(init) end),
    Spawn = fun(Options) ->
                    fun(_) ->
                            Call = {?MODULE, child, 0},
                            Control = {29, Ref, Pid, Leader, Call, Options},
                            chatter_raw_peer:send(Raw, Control, [])
                    end
            end,
    TracedSpawn = fun(_) ->
                          Control = {30, Ref, Pid, Leader, {?MODULE, child, 0}, [],
                                     {1, 7, 1, Pid, 0}},
                          chatter_raw_peer:send(Raw, Control, [])
                  end,
    Unlink = fun(Sender) -> Send({1, Pid, Sender}), Send({35, 1 bsl 40, Pid, Sender}) end,
    [{"unlinked", Unlink, fun() -> ok end, [{36, sender}]},
     {"spawned", Spawn([]), fun await_child/0, [{31, child}]},
     {"spawned, traced", TracedSpawn, fun await_child/0, [{32, child}]},
     {"not spawned", Spawn([no_option]), fun() -> ok end, [{31, none}]},
     {"spawned and monitored", Spawn([monitor]), fun await_child/0, [{31, child}, {28, child}]}
    | downs(Vm, Raw, 28)].

%% DOWN of a process that was monitored by identifier, and by name.
downs(Vm, Raw, Operation) ->
    Pid = chatter_raw_peer:pid(Raw, 1),
    Ref = chatter_raw_peer:reference(Raw, 2),
    Monitor = fun(Sender, What) ->
                      %% In order: registered, then monitored, then ended by its own hand.
                      true = on(Vm, fun() -> register(chatter_named, Sender) end),
                      chatter_raw_peer:send(Raw, {19, Pid, What, Ref}),
                      on(Vm, fun() -> await_monitor(Sender) end)
              end,
    lists:append(
      [[{"DOWN" ++ Size, fun(Sender) -> Monitor(Sender, Sender) end,
         fun() -> exit(Reason) end, [{Operation, sender}]},
        {"DOWN of a name" ++ Size, fun(Sender) -> Monitor(Sender, chatter_named) end,
         fun() -> exit(Reason) end, [{Operation, none}]}]
       || {Size, Reason} <- [{"", done}, {", large", {large, chatter_work:pattern(200000)}}]]).

await_monitor(Sender) ->
    case process_info(Sender, monitored_by) of
        {monitored_by, []} -> timer:sleep(1), await_monitor(Sender);
        {monitored_by, [_ | _]} -> ok
    end.

%%% What a VM of today sends to a peer without later capabilities, or while a connection is set up

old_signals(Vm, Raw) ->
    Pid = chatter_raw_peer:pid(Raw, 1),
    Node = chatter_raw_peer:node_name(Raw),
    Nothing = fun(_) -> ok end,
    Traceable =
        [{"old: to a process", Nothing, fun() -> Pid ! hello end, [{2, none}]},
         {"old: to a name", Nothing, fun() -> {a_name, Node} ! hello end, [{6, sender}]},
         {"old: exit/2", Nothing, fun() -> exit(Pid, {why, 1}) end, [{8, sender}]},
         {"old: exit of a linked process", Nothing, fun() -> link(Pid), exit(over) end,
          [{1, sender}, {3, sender}]}],
    Traceable
        ++ [{Title ++ ", traced", Sent, fun() -> traced(), Do() end, traced(Expected)}
            || {Title, Sent, Do, Expected} <- Traceable]
        ++ [{"old: unlink", Nothing, fun() -> link(Pid), unlink(Pid) end,
             [{1, sender}, {4, sender}]}]
        ++ downs(Vm, Raw, 21).
