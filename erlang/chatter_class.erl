%% SPDX-License-Identifier: Apache-2.0
%% @doc How what a process sends with `!' is to be carried: behind `chatter:set_class/2'. The native
%% side keeps it; this process sees to it that nothing is kept of processes that have ended.
-module(chatter_class).
-behaviour(gen_server).

-export([start_link/0, set/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-type state() :: #{reference() => pid()}.
%% The monitors of processes that have a class.

%% @doc Starts the process.
-spec start_link() -> {ok, pid()} | {error, term()} | ignore.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc See `chatter:set_class/2'.
-spec set(pid(), [chatter_send:option()]) -> ok | {error, not_started | full}.
set(Pid, Opts) when is_pid(Pid), node(Pid) =:= node() ->
    Manner = chatter_send:manner(Opts),
    try gen_server:call(?MODULE, {set, Pid, Manner}, infinity)
    catch exit:{noproc, _} -> {error, not_started}
    end;
set(_, _) ->
    error(badarg).

%% @private
-spec init([]) -> {ok, state()}.
init([]) ->
    %% A crash of this process changes nothing for those that have a class.
    Pids = [chatter_governor:pid(Sender) || Sender <- chatter_nif:manners()],
    {ok, maps:from_list([{monitor(process, Pid), Pid} || Pid <- Pids])}.

%% @private
-spec handle_call(term(), gen_server:from(), state()) -> {reply, term(), state()}.
handle_call({set, Pid, plain}, _From, State) ->
    ok = chatter_nif:unset_manner(chatter_message_frame:sender(Pid)),
    Of = maps:filter(fun(_, Other) -> Other =:= Pid end, State),
    lists:foreach(fun(Ref) -> demonitor(Ref, [flush]) end, maps:keys(Of)),
    {reply, ok, maps:without(maps:keys(Of), State)};
handle_call({set, Pid, Manner}, _From, State) ->
    case chatter_nif:set_manner(chatter_message_frame:sender(Pid), Manner) of
        ok ->
            case lists:member(Pid, maps:values(State)) of
                true -> {reply, ok, State};
                false -> {reply, ok, State#{monitor(process, Pid) => Pid}}
            end;
        full ->
            {reply, {error, full}, State}
    end.

%% @private
-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast(_, State) ->
    {noreply, State}.

%% @private
-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({'DOWN', Ref, process, _, _}, State) ->
    case maps:take(Ref, State) of
        {Pid, Rest} ->
            ok = chatter_nif:unset_manner(chatter_message_frame:sender(Pid)),
            {noreply, Rest};
        error ->
            {noreply, State}
    end;
handle_info(_, State) ->
    {noreply, State}.
