%% SPDX-License-Identifier: Apache-2.0
%% @doc Shows the native node every second that the VM runs, and what its name is: a node with a
%% dynamic name gets one from its first peer, and loses it with the last.
%%
%% The native node's threads go on when the schedulers of the VM do not (all of them in a NIF that
%% does not return, a crash dump being written), and would answer for it for ever. When this process
%% is not heard of, the other nodes are told, and their connections to this one end with
%% `net_tick_timeout' as over stock.
-module(chatter_pulse).
-behaviour(gen_server).

-export([start_link/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-define(INTERVAL_MS, 1000).

%% @doc Starts the process.
-spec start_link() -> {ok, pid()} | {error, term()} | ignore.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @private
-spec init([]) -> {ok, reference()}.
init([]) ->
    %% A busy VM runs: only one that runs nothing at all is silent.
    _ = process_flag(priority, max),
    {ok, beat()}.

%% @private
-spec handle_call(term(), gen_server:from(), term()) -> {noreply, term()}.
handle_call(_, _From, Timer) ->
    {noreply, Timer}.

%% @private
-spec handle_cast(term(), term()) -> {noreply, term()}.
handle_cast(_, Timer) ->
    {noreply, Timer}.

%% @private
-spec handle_info(term(), term()) -> {noreply, term()}.
handle_info({timeout, Timer, beat}, Timer) ->
    {noreply, beat()};
handle_info(_, Timer) ->
    {noreply, Timer}.

name('nonode@nohost') -> <<>>;
name(Name) -> atom_to_binary(Name).

beat() ->
    ok = chatter_nif:pulse(),
    ok = chatter_nif:set_name(name(node())),
    erlang:start_timer(?INTERVAL_MS, self(), beat).
