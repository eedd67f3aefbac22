%% A Common Test hook that writes what became of each case to a file, one line as it happens, so
%% that a run that dies half-way still tells how far it came.
%%
%%     start Suite Case          init_per_testcase is about to run
%%     ok    Suite Case Ms
%%     fail  Suite Case Ms Why
%%     skip  Suite Case 0  Why
%%
%% Fields are separated by tabs. `ok' is written before Common Test has judged end_per_testcase; a
%% `fail' after it holds. The hook also leaves out the cases that this run is not about: those never
%% show in the file.
-module(conformance_cth).

-export([id/1, init/2, pre_init_per_testcase/4, post_end_per_testcase/5,
         on_tc_fail/4, on_tc_skip/4]).

-record(state, {results :: file:name(),
                only    :: all | [atom()],
                leave   :: [atom()],
                relay   :: undefined | node(),
                ports   :: allowed | forbidden,
                sampler :: undefined | pid(),
                started = #{} :: #{{atom(), atom()} => integer()}}).

-define(LEFT_OUT, "left out of this run").
%% The hooks of the suites themselves cannot bear a case that an earlier hook has skipped.
-define(AFTER_THE_OTHERS, 1000).

id(_Options) -> ?MODULE.

%% OptionsFile holds terms: {results, File}, {only, all | [Case]}, {leave, [Case]}, {relay, Node}
%% and {ports, allowed | forbidden}. No channel of a carrier made of processes may turn out to be a
%% port: such a case went over stock, whatever it was told.
init(_Id, OptionsFile) ->
    {ok, Options} = file:consult(OptionsFile),
    {ok, #state{results = proplists:get_value(results, Options),
                only = proplists:get_value(only, Options, all),
                leave = proplists:get_value(leave, Options, []),
                relay = proplists:get_value(relay, Options),
                ports = proplists:get_value(ports, Options, allowed)}, ?AFTER_THE_OTHERS}.

pre_init_per_testcase(Suite, Case, Config, State) ->
    case wanted(Case, State) of
        true ->
            write(State, start, Suite, Case, []),
            Started = (State#state.started)#{{Suite, Case} => now_ms()},
            {Config, State#state{started = Started, sampler = spawn(fun() -> sample([]) end)}};
        false ->
            {{skip, ?LEFT_OUT}, State}
    end.

post_end_per_testcase(Suite, Case, Config, Return, State) ->
    case {proplists:get_value(tc_status, Config, ok), strangers(State), over_ports(State)} of
        {ok, [], []} -> write(State, ok, Suite, Case, [elapsed(Suite, Case, State)]);
        {ok, Links, Ports} ->
            Why = printed([{linked_past_the_relay, Links}, {channel_over_a_port, Ports}]),
            write(State, fail, Suite, Case, [elapsed(Suite, Case, State), Why]);
        _FailedOrSkipped -> ok
    end,
    {Return, State#state{sampler = undefined}}.

on_tc_fail(Suite, Case, Reason, State) ->
    write(State, fail, Suite, name(Case), [elapsed(Suite, name(Case), State), printed(Reason)]),
    clear_away(nodes(connected)),
    State.

%% A failed case leaves its nodes behind, and the next ones begin by asserting that there are none.
clear_away(Nodes) ->
    [rpc:cast(Node, erlang, halt, [1]) || Node <- Nodes],
    timer:sleep(200),
    [net_kernel:disconnect(Node) || Node <- nodes(connected)],
    ok.

on_tc_skip(Suite, Case, Reason, State) ->
    Why = printed(Reason),
    case string:find(Why, ?LEFT_OUT) of
        nomatch -> write(State, skip, Suite, name(Case), ["0", Why]);
        _ -> ok
    end,
    State.

wanted(Case, #state{only = Only, leave = Leave}) ->
    (Only =:= all orelse lists:member(Case, Only)) andalso not lists:member(Case, Leave).

%% On the relay path every link must end at the relay, or the case does not test what it says.
strangers(#state{relay = undefined}) -> [];
strangers(#state{relay = Relay}) ->
    try chatter:neighbours() -- [Relay]
    catch _:_ -> []
    end.

%% Looks at this node's channels while a case runs. It monitors no nodes: suites count who does.
sample(Seen) ->
    receive
        {From, seen} -> From ! {self(), Seen}
    after 50 ->
        Now = [Node || {Node, Ctrl} <- erlang:system_info(dist_ctrl), is_port(Ctrl)],
        sample(lists:usort(Now ++ Seen))
    end.

over_ports(#state{ports = forbidden, sampler = Sampler}) when is_pid(Sampler) ->
    Sampler ! {self(), seen},
    receive {Sampler, Nodes} -> Nodes after 1000 -> [] end;
over_ports(_) -> [].

name({Case, _Group}) -> Case;
name(Case) -> Case.

elapsed(Suite, Case, #state{started = Started}) ->
    integer_to_list(now_ms() - maps:get({Suite, Case}, Started, now_ms())).

now_ms() -> erlang:monotonic_time(millisecond).

printed(Reason) -> lists:flatten(io_lib:format("~0tP", [Reason, 40])).

write(#state{results = File}, What, Suite, Case, More) ->
    Fields = [atom_to_list(What), atom_to_list(Suite), atom_to_list(Case) | More],
    Line = [lists:join($\t, Fields), $\n],
    ok = file:write_file(File, unicode:characters_to_binary(Line), [append]).
