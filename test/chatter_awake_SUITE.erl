%% When a second scheduler is kept awake while frames are handed to the VM (chatter_awake).
-module(chatter_awake_SUITE).
-behaviour(ct_suite).

-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-define(TIMEOUT_MS, 10000).

suite() -> [{timetrap, {seconds, 30}}].

all() -> [plenty, scarce, pause, ends_with_its_owner].

%% Given frames that take as long as they should, expect no process to be started.
plenty(_Config) ->
    Before = links(),
    Awake = lists:foldl(fun chatter_awake:look/2, batch(), lists:seq(0, 10000, 300)),
    ?assertEqual(Before, links()),
    ?assertEqual(Awake, chatter_awake:handed_over(31, Awake)),
    ?assertNotEqual(Awake, chatter_awake:handed_over(64, Awake)).

%% Given frames that took long, expect the process to be nudged with these and with all that follow
%% within a tenth of a second, and no longer.
scarce(_Config) ->
    {Pid, Awake} = slow(),
    Soon = lists:foldl(fun chatter_awake:look/2, Awake, [2100, 2200, 2300]),
    ?assertEqual(3, nudges(Pid)),
    Later = chatter_awake:look(200000, chatter_awake:start_batch(Soon)),
    ?assertEqual(0, nudges(Pid)),
    _ = chatter_awake:look(200400, Later),
    ?assertEqual(1, nudges(Pid)),
    ?assert(is_process_alive(Pid)).

%% Given a pause between batches, expect it not to be taken for slow frames.
pause(_Config) ->
    Before = links(),
    First = chatter_awake:look(1000, batch()),
    _ = chatter_awake:look(900000, chatter_awake:start_batch(First)),
    ?assertEqual(Before, links()).

%% Given an owner that ends, expect the process to end with it.
ends_with_its_owner(_Config) ->
    Self = self(),
    {Owner, Ref} = spawn_monitor(fun() ->
                                         Self ! {self(), element(1, slow())},
                                         receive stop -> exit(over) end
                                 end),
    Pid = receive {Owner, Started} -> Started end,
    Awake = erlang:monitor(process, Pid),
    Owner ! stop,
    [receive {'DOWN', R, process, _, Reason} -> ?assertEqual(over, Reason)
     after ?TIMEOUT_MS -> error(timeout)
     end || R <- [Ref, Awake]].

batch() -> chatter_awake:start_batch(chatter_awake:new()).

%% Frames that take long; the process that is started, traced when it has had its first nudge.
slow() ->
    Before = links(),
    Awake = chatter_awake:look(2000, chatter_awake:look(1000, batch())),
    [Pid] = links() -- Before,
    Waits = fun() -> process_info(Pid, status) =:= {status, waiting} end,
    ok = chatter_cluster:wait_until(Waits, ?TIMEOUT_MS),
    1 = erlang:trace(Pid, true, ['receive']),
    {Pid, Awake}.

%% How often a process has been nudged since this was asked last. A message is traced when it is
%% taken off what is on its way, which the process has done for all from here before it answers.
nudges(Pid) ->
    {messages, _} = process_info(Pid, messages),
    Ref = erlang:trace_delivered(Pid),
    nudges(Pid, Ref, 0).

nudges(Pid, Ref, Count) ->
    receive
        {trace, Pid, 'receive', stay} -> nudges(Pid, Ref, Count + 1);
        {trace_delivered, Pid, Ref} -> Count
    after ?TIMEOUT_MS -> error(timeout)
    end.

links() ->
    {links, Links} = process_info(self(), links),
    lists:sort(Links).
