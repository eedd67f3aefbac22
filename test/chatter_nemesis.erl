%% The nemesis: plays a scenario written as data against real nodes that write numbered messages to
%% each other, and judges what arrived and who was reported down. docs/testing.md has the format of
%% scenarios; chatter_nemesis_plan reads them, _faults plays, _node works, _check judges.
%%
%%     chatter_nemesis:run("test/lab/short.scenario", #{seed => 7}).
%%
%% `main/0` is for test/lab/run, with NAME=VALUE words as arguments.
-module(chatter_nemesis).

-export([main/0, run/2, read/2]).

-export_type([result/0]).

-type result() :: #{seed := non_neg_integer(), messages := non_neg_integer(),
                    faults := non_neg_integer(), verdict := chatter_nemesis_check:verdict(),
                    damaged := non_neg_integer(), problems := [term()],
                    violations := non_neg_integer(), pauses := [term()]}.

-define(PROGRESS_MS, 5000).
-define(DRAIN_MS, 60000).
-define(HELD_UP_MS, 1000).
-define(BOOT_MS, 60000).
-define(KEY, "43686174746572206e656d657369732c206e6f2073656372657420617420616c").

%%% ------------------------------------------------------------------------------------
%%% From the command line

-spec main() -> no_return().
main() ->
    Args = [list_to_tuple(string:split(Word, "=")) || Word <- init:get_plain_arguments()],
    Given = maps:from_list([{list_to_existing_atom(string:lowercase(Key)), number(Value)}
                            || {Key, Value} <- Args, Value =/= ""]),
    File = maps:get(scenario, Given, "test/lab/nemesis.scenario"),
    try run(File, maps:remove(scenario, Given)) of
        {skip, Why} -> say("SKIPPED: ~ts~n", [Why]), halt(0);
        #{violations := 0} -> halt(0);
        _ -> halt(1)
    catch Class:Reason:Stack ->
            say("the run itself failed: ~p ~p~n~p~n", [Class, Reason, Stack]),
            halt(2)
    end.

number(Word) ->
    try list_to_integer(lists:flatten(string:replace(Word, "_", "", all)))
    catch error:badarg -> Word
    end.

%%% ------------------------------------------------------------------------------------
%%% A run

%% Given: seed, messages, faults (how many) and seconds go before what the file says.
-spec run(file:name(), #{atom() => term()}) -> result() | {skip, string()}.
run(File, Given) ->
    Scenario = read(File, Given),
    #{seed := Seed, network := Network} = Scenario,
    say("nemesis: ~ts, seed ~b~n", [File, Seed]),
    case Network =:= loopback orelse chatter_lab:available() of
        {skip, _} = Skip -> Skip;
        _ -> play(Scenario)
    end.

%% The scenario with all defaults filled in and its faults drawn.
-spec read(file:name(), #{atom() => term()}) -> #{atom() => term()}.
read(File, Given) ->
    {ok, Terms} = file:consult(File),
    Defaults = #{network => switch, chatter => [], hold_ms => 1000, messages => 0,
                 seed => erlang:system_time() rem 1000000, load => #{}, log => "_build/nemesis"},
    Scenario = maps:merge(maps:merge(Defaults, maps:from_list(Terms)), maps:remove(faults, Given)),
    #{topology := Shape, network := Network, seed := Seed} = Scenario,
    Topology = chatter_nemesis_plan:links(Shape),
    Faults = case maps:get(faults, Scenario) of
                 {random, Opts} ->
                     Kinds = [K || K <- maps:get(kinds, Opts),
                                   lists:member(K, chatter_nemesis_plan:kinds(Network))],
                     Count = maps:get(faults, Given, maps:get(count, Opts)),
                     chatter_nemesis_plan:faults(Opts#{count => Count, kinds => Kinds}, Topology,
                                                 Seed);
                 List -> List
             end,
    Load = maps:merge(#{rate => 10000, every_ms => 50, sizes => [{1, 10}]},
                      maps:get(load, Scenario)),
    Concurrent = case Scenario of
                     #{faults := {random, #{concurrent := Most}}} -> Most;
                     _ -> maps:get(concurrent, Scenario, length(Faults))
                 end,
    Scenario#{topology => Topology, faults => Faults, load => Load, concurrent => Concurrent}.

play(#{topology := {N, Links}, network := Network, seed := Seed} = Scenario) ->
    Log = open_log(Scenario),
    Leader = group_leader(),
    %% What the nodes print goes to the log.
    true = group_leader(Log, self()),
    ok = chatter_cluster:new(),
    Lab = case Network of
              loopback -> none;
              _ -> chatter_lab:open(#{nodes => N, network => Network, seed => Seed})
          end,
    try
        Run = new_run(Scenario, Lab),
        say_to(Leader, "~b nodes, ~b links, ~b faults planned~n",
               [N, length(Links), length(maps:get(faults, Scenario))]),
        ok = boot_all(Run, N),
        Began = now_ms(),
        ok = rounds(#{run => Run, scenario => Scenario, leader => Leader, log => Log,
                      began => Began, next_progress => Began + ?PROGRESS_MS, lag => 0,
                      planned => maps:get(faults, Scenario), active => #{}, played => #{},
                      concurrent => maps:get(concurrent, Scenario), counts => #{},
                      events => #{}}),
        result(Run, Scenario, Leader, Began)
    after
        true = group_leader(Leader, self()),
        ok = chatter_cluster:stop_all(),
        _ = Lab =:= none orelse chatter_lab:close(Lab),
        ok = file:close(Log)
    end.

open_log(#{log := Dir, seed := Seed}) ->
    File = filename:join(Dir, "nemesis-" ++ integer_to_list(Seed) ++ ".log"),
    ok = filelib:ensure_dir(File),
    {ok, Log} = file:open(File, [write, {encoding, utf8}]),
    say("log: ~ts~n", [File]),
    Log.

new_run(#{topology := {N, Links}, chatter := Chatter, hold_ms := HoldMs, load := Load}, Lab) ->
    Names = maps:from_list([{I, name(Lab, I)} || I <- lists:seq(1, N)]),
    Opts = #{links => static, chatter => [{key, ?KEY}, {hold_ms, HoldMs} | Chatter]},
    Pairs = N * (N - 1),
    #{rate := Rate, every_ms := Every, sizes := Sizes} = Load,
    Start = fun(I) ->
                    Beside = [maps:get(J, Names) || J <- chatter_nemesis_plan:neighbours(I, Links)],
                    start(Lab, maps:get(I, Names), I, Opts#{neighbours => Beside})
            end,
    #{table => ets:new(?MODULE, [public]), names => Names, lab => Lab, links => Links,
      hold_ms => HoldMs, start => Start,
      work => #{nodes => maps:values(Names), every_ms => Every, sizes => Sizes,
                burst => max(1, round(Rate * Every / 1000 / Pairs))}}.

name(none, I) -> chatter_cluster:node_name(list_to_atom("n" ++ integer_to_list(I)));
name(_, I) -> chatter_lab:node_name(I).

start(none, Name, _, Opts) -> chatter_work:start(Name, Opts);
start(Lab, _, I, Opts) -> chatter_lab:start(Lab, I, Opts).

%% Nobody talks before all have routes: how a cluster forms under load is another question.
boot_all(#{table := Table} = Run, N) ->
    Leader = group_leader(),
    Places = lists:seq(1, N),
    Booting = [spawn_monitor(fun() ->
                                     true = group_leader(Leader, self()),
                                     exit({ok, chatter_nemesis_faults:start(Run, I)})
                             end) || I <- Places],
    Peers = [receive {'DOWN', Ref, process, Pid, {ok, Peer}} -> Peer end || {Pid, Ref} <- Booting],
    ok = chatter_cluster:await_routes(Peers, ?BOOT_MS),
    _ = [ok = chatter_nemesis_faults:work(Run, Peer) || Peer <- Peers],
    _ = [ok = chatter_nemesis_faults:await_whole(Run, I) || I <- Places],
    [] = ets:match_object(Table, {{problem, '_'}, '_'}),
    ok.

%%% ------------------------------------------------------------------------------------
%%% Rounds: begin what is due, note what is over, show how far it is

rounds(#{planned := [], active := Active} = S) when map_size(Active) =:= 0 ->
    case total(maps:get(counts, S)) >= maps:get(messages, maps:get(scenario, S)) of
        true -> ok;
        false -> rounds_on(S)
    end;
rounds(S) -> rounds_on(S).

rounds_on(S0) ->
    #{next_progress := Progress} = S = begin_due(S0),
    Wait = max(0, min(Progress, next_fault(S)) - now_ms()),
    receive
        {'DOWN', _, process, Pid, Reason} ->
            rounds(over(S, Pid, Reason))
    after Wait ->
            case now_ms() of
                Now when Now > Progress + ?HELD_UP_MS, Wait > 0 ->
                    %% Whoever reads the result has to know.
                    say_to(maps:get(leader, S), "held up for ~b ms~n", [Now - Progress]),
                    rounds(progress(S));
                Now when Now >= Progress -> rounds(progress(S));
                _ -> rounds(S)
            end
    end.

next_fault(#{planned := [{At, _, _} | _], began := Began, lag := Lag}) -> Began + At + Lag;
next_fault(_) -> infinity.

%% A fault waits until those before it leave room; all later ones are put off by as much, so that
%% they do not come at once when this process was held up.
begin_due(#{planned := [{At, Fault, ForMs} | Rest], active := Active, run := Run} = S) ->
    #{scenario := #{topology := Topology}, began := Began, lag := Lag, log := Log} = S,
    Now = now_ms(),
    Faults = [F || {F, _} <- maps:values(Active)],
    case Now >= Began + At + Lag of
        true ->
            case length(Faults) < maps:get(concurrent, S)
                     andalso chatter_nemesis_plan:leaves_route(Fault, Faults, Topology) of
                true ->
                    log(S, "begin ~p for ~b ms", [Fault, ForMs]),
                    {Pid, _} = spawn_monitor(
                                 fun() ->
                                         true = group_leader(Log, self()),
                                         ok = chatter_nemesis_faults:play(Run, Fault, ForMs)
                                 end),
                    S#{planned := Rest, active := Active#{Pid => {Fault, Now}},
                       lag := Now - Began - At};
                false ->
                    S#{lag := Now + 100 - Began - At}
            end;
        false ->
            S
    end;
begin_due(S) -> S.

over(#{active := Active, played := Played, run := #{table := Table}} = S, Pid, Reason) ->
    {{Fault, Began}, Left} = maps:take(Pid, Active),
    log(S, "over ~p after ~b ms: ~p", [Fault, now_ms() - Began, Reason]),
    Reason =:= normal
        orelse ets:insert(Table, {{problem, make_ref()}, {Fault, now_ms(), Reason}}),
    Kind = element(1, Fault),
    S#{active := Left, played := Played#{Kind => maps:get(Kind, Played, 0) + 1}}.

progress(#{run := Run, counts := Counts, events := Events, began := Began} = S) ->
    Seen = chatter_nemesis_faults:snapshots(Run),
    NewCounts = maps:merge(Counts, maps:from_list([{Key, {N, W}} || {Key, {N, W, _}} <- Seen])),
    NewEvents = maps:merge(Events, maps:from_list([{Key, E} || {Key, {_, _, E}} <- Seen])),
    {Wrong, Downs, Problems} = violations(Run, NewCounts, NewEvents),
    Ms = now_ms() - Began,
    #{played := Played, active := Active, planned := Planned} = S,
    Line = io_lib:format("~4b s  messages ~s (~s/s)  faults ~b of ~b ~0p  now ~0p  violations ~b~n",
                         [Ms div 1000, thousands(total(NewCounts)),
                          thousands((total(NewCounts) - total(Counts)) * 1000 div
                                        (?PROGRESS_MS + now_ms() - maps:get(next_progress, S))),
                          lists:sum(maps:values(Played)),
                          lists:sum(maps:values(Played)) + map_size(Active) + length(Planned),
                          maps:to_list(Played), [F || {F, _} <- maps:values(Active)],
                          Wrong + length(Downs) + length(Problems)]),
    say_to(maps:get(leader, S), "~ts", [Line]),
    _ = [log(S, "violation: ~0p", [V]) || V <- Downs ++ Problems],
    S#{counts := NewCounts, events := NewEvents, next_progress := now_ms() + ?PROGRESS_MS}.

violations(Run, Counts, Events) ->
    {lists:sum([W || {_, W} <- maps:values(Counts)]),
     chatter_nemesis_check:downs(lists:append(maps:values(Events)), windows(Run)),
     problems(Run)}.

windows(#{table := Table}) -> [W || {_, W} <- ets:match_object(Table, {{window, '_'}, '_'})].

problems(#{table := Table}) -> [P || {_, P} <- ets:match_object(Table, {{problem, '_'}, '_'})].

total(Counts) -> lists:sum([N || {N, _} <- maps:values(Counts)]).

%%% ------------------------------------------------------------------------------------
%%% The end

result(#{table := Table, names := Names} = Run, #{seed := Seed} = Scenario, Leader, Began) ->
    Ended = now_ms(),
    Places = lists:sort(maps:keys(Names)),
    Ask = fun(I, F) -> chatter_nemesis_faults:call(Run, I, chatter_nemesis_node, F) end,
    _ = [ok = Ask(I, stop_senders) || I <- Places],
    Left = drain(fun() -> lists:sum([Ask(I, senders_left) || I <- Places]) =:= 0 end),
    Arrived = drain(fun() -> all_arrived(reports(Run, Places), windows(Run)) end),
    Now = reports(Run, Places),
    Reported = ets:match_object(Table, {{report, '_', '_'}, '_'}),
    Earlier = [{maps:get(I, Names), R} || {{report, I, _}, R} <- Reported],
    Input = input(Now ++ Earlier, Run),
    Verdict = chatter_nemesis_check:verdict(Input),
    Damaged = lists:sum([N || {_, #{damaged := N}} <- Now ++ Earlier]),
    Problems = problems(Run) ++ [senders_held_back || Left =:= timeout]
        ++ [not_drained || Arrived =:= timeout],
    Counted = maps:with([lost, repeated, reordered, nodedown, broken, not_once, unopened], Verdict),
    Result = #{seed => Seed, faults => length(maps:get(faults, Scenario)),
               messages => lists:sum([N || {_, #{count := N}} <- Now ++ Earlier]),
               verdict => Verdict, damaged => Damaged, problems => Problems,
               pauses => pauses(Now ++ Earlier, windows(Run)),
               violations => lists:sum(maps:values(Counted)) + Damaged + length(Problems)},
    summary(Leader, Result, Ended - Began),
    Result.

drain(Fun) ->
    try chatter_cluster:wait_until(fun() -> receive after 200 -> ok end, Fun() end, ?DRAIN_MS)
    catch error:{timeout, _} -> timeout
    end.

reports(Run, Places) ->
    [{maps:get(I, maps:get(names, Run)),
      chatter_nemesis_faults:call(Run, I, chatter_nemesis_node, report)} || I <- Places].

all_arrived(Reports, Windows) ->
    Received = maps:from_list(lists:append([maps:to_list(R) || {_, #{received := R}} <- Reports])),
    lists:all(fun({Stream, _, _, Count, open}) ->
                      {Last, _} = maps:get(Stream, Received, {0, []}),
                      Last =:= Count;
                 ({_, From, To, _, {ended, Ms, _}}) ->
                      %% What was lost there does not arrive later: no reason to wait.
                      is_boolean(chatter_nemesis_check:exempt(From, To, Ms, Windows));
                 (_) -> false
              end, lists:append([Sent || {_, #{sent := Sent}} <- Reports])).

%% A later report of the same life has all of the earlier one.
input(Reports, #{names := Names} = Run) ->
    Received = [{Stream, State, Node} || {Node, #{received := R}} <- lists:reverse(Reports),
                                         {Stream, State} <- maps:to_list(R)],
    #{sent => lists:append([Sent || {_, #{sent := Sent}} <- Reports]),
      received => maps:from_list([{Stream, State} || {Stream, State, _} <- Received]),
      receivers => maps:from_list([{Stream, Node} || {Stream, _, Node} <- Received]),
      wrong => [W || {_, #{wrong := W}} <- Reports],
      events => lists:append([E || {_, #{events := E}} <- Reports]),
      windows => windows(Run), nodes => maps:values(Names)}.

pauses(Reports, Windows) ->
    All = [P || {To, #{pauses := Pauses}} <- Reports, {Length, At, From} <- Pauses,
                P <- [{Length, At, From, To}],
                not lists:any(fun(Ms) -> chatter_nemesis_check:exempt(From, To, Ms, Windows) end,
                              [At, At - Length])],
    lists:sublist(lists:reverse(lists:sort(All)), 10).

summary(Leader, #{verdict := Verdict, seed := Seed} = Result, Ms) ->
    #{messages := Messages, faults := Faults, damaged := Damaged, problems := Problems,
      violations := Violations, pauses := Pauses} = Result,
    say_to(Leader, "~n~s messages and ~b faults in ~b s, seed ~b~n",
           [thousands(Messages), Faults, Ms div 1000, Seed]),
    [say_to(Leader, "  ~-40s ~b~n", [Text, maps:get(Key, Verdict)])
     || {Key, Text} <- [{lost, "lost"}, {repeated, "repeated"}, {reordered, "reordered"},
                        {nodedown, "nodedown of nodes that were there"},
                        {broken, "connections that ended for no reason"},
                        {not_once, "restarts not seen as one down, one up"},
                        {unopened, "receivers that never answered"}]],
    say_to(Leader, "  ~-40s ~b~n", ["damaged", Damaged]),
    say_to(Leader, "  ~-40s ~b~n", ["not recovered, or not played", length(Problems)]),
    say_to(Leader, "  ~-40s ~s~n", ["longest pauses of a stream", longest(Pauses)]),
    _ = [say_to(Leader, "    ~0p~n", [E])
         || E <- Problems ++ maps:get(examples, Verdict), Violations > 0],
    say_to(Leader, "~s~n", [case Violations of
                                0 -> "0 violations";
                                _ -> io_lib:format("~b VIOLATIONS", [Violations])
                            end]).

longest([]) -> "under 300 ms";
longest(Pauses) -> [lists:join(", ", [integer_to_list(P) || {P, _, _, _} <- Pauses]), " ms"].

%%% Output

log(#{log := Log, began := Began}, Format, Args) ->
    io:format(Log, "~9.3f s (~b) " ++ Format ++ "~n",
              [(now_ms() - Began) / 1000, now_ms() | Args]).

say(Format, Args) -> say_to(group_leader(), Format, Args).

say_to(Leader, Format, Args) -> io:format(Leader, Format, Args).

thousands(N) when N < 1000 -> integer_to_list(max(0, N));
thousands(N) -> [thousands(N div 1000), io_lib:format(",~3..0b", [N rem 1000])].

now_ms() -> os:system_time(millisecond).
